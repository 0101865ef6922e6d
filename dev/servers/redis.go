package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

var redis = &server{
	key: "redis", title: "Redis 7", variable: "POSTBUS_REDIS_URL",
	answers: answersAsRedis,
	start:   startRedis,
	missing: redisServer.missing,
	stop:    syscall.SIGTERM,

	composePort: 6379,
	composeURL:  redisURL,
}

// redisServer may be one that you have built, or Valkey under Redis' name.
var redisServer = program{
	name: "redis-server", folders: []string{"/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"}, fits: fitsAsRedis,
	lack: lack{
		debian: "redis-server", fedora: "redis", brew: "redis",
		byHand:   "a redis-server of 7.0 or later anywhere in PATH",
		variable: "POSTBUS_REDIS_URL=redis://host:6379/0",
	},
}

var redisVersion = regexp.MustCompile(`\bv=(\d+)\.`)

func fitsAsRedis(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s does not run here: %w\n%s", path, err, tail(out))
	}
	m := redisVersion.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("%s --version says %q, which is not Redis", path, tail(out))
	}
	if major, _ := strconv.Atoi(string(m[1])); major < 7 {
		return fmt.Errorf("%s is Redis %d; 7.0 or later is needed", path, major)
	}
	return nil
}

func redisURL(addr string) string { return "redis://" + addr + "/0" }

func startRedis(l local) (record, *process.Process, error) {
	program, err := l.program(redisServer)
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
