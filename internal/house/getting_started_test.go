package house

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/testkit"
)

// docs/getting-started.md, word for word: its files in an empty module, run in its
// order, print what it says.
func TestGettingStarted(t *testing.T) {
	dir := t.TempDir()
	writeModule(t, dir)
	blocks, err := blocksOf("docs/getting-started.md", readDoc(t, "docs/getting-started.md"))
	if err != nil {
		t.Fatal(err)
	}
	toRedis := ""
	for _, b := range blocks {
		if b.place != "" {
			write(t, filepath.Join(dir, b.place), b.code)
		}
		if strings.Contains(b.code, `RelayConfig{Name: "redis"}`) {
			toRedis = b.code
		}
	}
	printing := filepath.Join(dir, "shop/main.go")
	source, err := os.ReadFile(printing)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "shop/redis/main.go"), toRedisStreams(t, string(source), toRedis))
	bin := filepath.Join(dir, "bin")
	if out, ok := goIn(dir, "build", "-o", bin+"/", "./shop", "./shop/report", "./shop/redis", "./shop/consumer"); !ok {
		t.Fatal(out)
	}
	env := readersServers(t)

	shop := start(t, env, filepath.Join(bin, "shop"), "o-1", "o-2")
	shop.prints("committed: o-1\n", "committed: o-2\n", "order.placed", "order.paid")
	shop.printsTimes("to the broker: order ", 4)
	shop.interrupt()

	shop = start(t, env, filepath.Join(bin, "shop"), "o-2", "o-3")
	shop.prints("rolled back: place order o-2:", "committed: o-3\n")
	shop.printsTimes("to the broker: order ", 2)
	shop.interrupt()

	report := start(t, env, filepath.Join(bin, "report"))
	report.prints("counted o-1\n", "counted o-2\n", "counted o-3\n")
	report.interrupt()
	report = start(t, env, filepath.Join(bin, "report"))

	shop = start(t, env, filepath.Join(bin, "redis"), "o-4")
	shop.prints("committed: o-4\n")
	report.prints("counted o-4\n")
	report.interrupt()
	if out := report.text(); strings.Count(out, "counted") != 1 {
		t.Errorf("an order was counted again:\n%s", out)
	}
	consumer := start(t, env, filepath.Join(bin, "consumer"))
	for i := range 4 {
		consumer.prints(fmt.Sprintf("packed o-%d\n", i+1), fmt.Sprintf("receipt for o-%d\n", i+1))
	}
	shop.interrupt()
	consumer.interrupt()

	again := start(t, env, filepath.Join(bin, "redis"), "o-5")
	consumer = start(t, env, filepath.Join(bin, "consumer"))
	consumer.prints("packed o-5\n", "receipt for o-5\n")
	again.interrupt()
	consumer.interrupt()
	if out := consumer.text(); strings.Count(out, "packed") != 1 {
		t.Errorf("something was handled again:\n%s", out)
	}
}

// toRedisStreams does what step 5 tells the reader to do with main.go.
func toRedisStreams(t *testing.T, source, toRedis string) string {
	t.Helper()
	before, after, ok := strings.Cut(source, "\t// Drain the log to the broker.\n\trelay, err := outbox.NewRelay(pool, printer{}")
	_, after, ok2 := strings.Cut(after, "\n")
	after, _, ok3 := strings.Cut(after, "// printer stands in")
	if toRedis == "" || !ok || !ok2 || !ok3 {
		t.Fatal("step 5 of docs/getting-started.md does not fit its main.go")
	}
	source = before + toRedis + after
	source = strings.Replace(source, "\t\"github.com/ThreeDotsLabs/watermill/message\"\n", "", 1)
	return strings.Replace(source, "import (\n", "import (\n\t\"github.com/redis/go-redis/v9\"\n\t\""+module+"/broker/redisstream\"\n", 1)
}

// readersServers gives the environment of a reader: a database that has only
// what is in a new one, and a Redis without anything in it.
func readersServers(t *testing.T) []string {
	t.Helper()
	name := testkit.Schema(t) + "_db"
	pool := testkit.Postgres(t, testkit.PG15)
	exec := func(sql string) {
		if _, err := pool.Exec(context.WithoutCancel(t.Context()), sql); err != nil {
			t.Error(err)
		}
	}
	exec("CREATE DATABASE " + name)
	t.Cleanup(func() { exec("DROP DATABASE " + name + " WITH (FORCE)") })
	database, err := url.Parse(testkit.URL(t, testkit.PG15))
	if err != nil {
		t.Fatal(err)
	}
	database.Path = "/" + name

	// The document's streams have no prefix: they get a database of their own, the
	// last of a Redis as it comes.
	const last = 15
	client := testkit.Redis(t, func(o *redis.Options) { o.DB = last })
	if err := client.FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.FlushDB(context.WithoutCancel(t.Context())).Err() })
	broker, err := url.Parse(testkit.URL(t, testkit.RedisServer))
	if err != nil {
		t.Fatal(err)
	}
	broker.Path = fmt.Sprintf("/%d", last)
	return append(os.Environ(), "DATABASE_URL="+database.String(), "REDIS_URL="+broker.String())
}

// program is a program of the reader's, running.
type program struct {
	t   *testing.T
	cmd *exec.Cmd

	mu  sync.Mutex
	out bytes.Buffer
}

func start(t *testing.T, env []string, binary string, args ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(binary, args...)}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("%s printed:\n%s", p.cmd, p.text())
		}
	})
	return p
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *program) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (p *program) prints(all ...string) {
	p.t.Helper()
	for _, text := range all {
		p.printsTimes(text, 1)
	}
}

func (p *program) printsTimes(text string, n int) {
	p.t.Helper()
	testkit.Eventually(p.t, 30*time.Second, func() bool { return strings.Count(p.text(), text) >= n }, "%s prints %q %d times", p.cmd, text, n)
}

// interrupt is the reader's Ctrl-C, after which the program ends in peace.
func (p *program) interrupt() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("%s after Ctrl-C: %v", p.cmd, err)
	}
}
