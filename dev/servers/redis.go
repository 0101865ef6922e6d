package main

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

var redis = &server{
	key: "redis", title: "Redis 7", variable: "POSTBUS_REDIS_URL",
	answers: answersAsRedis,
	start:   startRedis,
	stop:    syscall.SIGTERM,

	composePort: 6379,
	composeURL:  redisURL,
}

func redisURL(addr string) string { return "redis://" + addr + "/0" }

func startRedis(l local) (record, *process.Process, error) {
	program, err := l.program("redis-server", "redis-server", "/usr/bin", "/usr/local/bin")
	if err != nil {
		return record{}, nil, err
	}
	p, err := process.Start(process.Spec{
		Program: program,
		Args: []string{
			"--port", fmt.Sprint(l.port), "--bind", "127.0.0.1", "--dir", l.dir,
			"--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
		},
		Dir: l.dir, Log: filepath.Join(l.dir, "log"), Account: l.account,
	})
	return record{URL: redisURL(net.JoinHostPort("127.0.0.1", fmt.Sprint(l.port)))}, p, err
}

func answersAsRedis(address string, foreign bool) error {
	addr, err := hostPort(address, "6379")
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", addr, 3*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if strings.HasPrefix(address, "rediss://") {
		return nil // TLS: that somebody listens has to do
	}
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return fmt.Errorf("ping %s: %w", addr, err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("ping %s: %w", addr, err)
	}
	answer = strings.TrimSpace(answer)
	if answer == "+PONG" || foreign && strings.HasPrefix(answer, "-NOAUTH") {
		return nil
	}
	return fmt.Errorf("ping %s: it answered %q", addr, answer)
}
