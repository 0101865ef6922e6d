package testkit

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

var redisProgram = programOf{"redis-server", func() []string { return []string{"/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"} },
	"install the Debian package redis-server, or any of 7.0 or later: Docker's is for the shared server only"}

// PrivateRedis makes and starts a Redis. It writes what it answers into its
// append-only file first, and has the disk take it once a second: its own death
// loses nothing, the machine's up to a second or two. Args are more of its
// command line, such as "--maxmemory", "8mb"; "--appendonly", "no" makes a kill
// lose everything.
func PrivateRedis(t testing.TB, args ...string) *PrivateBroker {
	t.Helper()
	s := newServer(t, "Redis", redisProgram, nil)
	b := &PrivateBroker{t: t, name: "Redis", addr: s.Addr(), url: "redis://" + s.Addr() + "/0", log: filepath.Join(s.Dir, "log")}
	b.start = func() (*process.Process, error) {
		return process.Start(process.Spec{
			Program: s.Program,
			Args: append([]string{"--port", fmt.Sprint(s.Port), "--bind", "127.0.0.1", "--dir", s.Dir, "--save", "",
				"--appendonly", "yes", "--appendfsync", "everysec"}, args...),
			Dir: s.Dir, Log: b.log, Account: s.Account,
			DieWithParent: true, ParentDeath: syscall.SIGKILL,
		})
	}
	b.answers = func() error { return pong(b.addr) }
	b.run()
	return b
}

// pong returns nil if a Redis at host:port has read its data.
func pong(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, 3*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && strings.TrimSpace(answer) != "+PONG" {
		err = fmt.Errorf("ping %s: it answered %q", addr, answer)
	}
	return err
}
