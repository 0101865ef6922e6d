package redisstream

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/internal/testkit/process"
	"github.com/postbus/postbus/outbox"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const patience = 20 * time.Second // for what comes at once on a machine that is not busy

// noLeaks fails the test if a goroutine outlives it. Call it first.
func noLeaks(t *testing.T) {
	t.Helper()
	running := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		// go-redis keeps one clock for the whole process.
		goleak.VerifyNone(t, running, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.startTimeCacheUpdater"),
			goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.init.0.func1"))
	})
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newPublisher(t testing.TB, cfg PublisherConfig) *Publisher {
	t.Helper()
	p, err := NewPublisher(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func newSubscriber(t testing.TB, cfg SubscriberConfig) *Subscriber {
	t.Helper()
	if cfg.Group == "" {
		cfg.Group = "group"
	}
	if cfg.MaxInFlight == 0 { // most tests look at entries one by one; those of many say so
		cfg.MaxInFlight = 1
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	s, err := NewSubscriber(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func subscribe(t testing.TB, s *Subscriber, stream string) <-chan *message.Message {
	t.Helper()
	ch, err := s.Subscribe(context.Background(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func receive(t testing.TB, ch <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-ch:
		if !ok {
			t.Fatal("the channel is closed; want a message")
		}
		return m
	case <-time.After(patience):
		t.Fatal("no message came")
	}
	return nil
}

func isClosed(t testing.TB, ch <-chan *message.Message) {
	t.Helper()
	select {
	case m, ok := <-ch:
		if ok {
			t.Fatalf("got message %s; want a closed channel", m.UUID)
		}
	case <-time.After(patience):
		t.Fatal("the channel was not closed")
	}
}

// outboxMessage is the nth message of a key.
func outboxMessage(topic, key string, n int) *outbox.Message {
	return &outbox.Message{
		LogID: int64(n), EventID: uuid.Must(uuid.NewV7()), EventType: "order.placed", SchemaVersion: 2,
		Topic: topic, Key: key, ContentType: "application/json", Source: "shop/1",
		Payload: []byte(fmt.Sprintf(`{"key":%q,"n":%d}`, key, n)),
	}
}

func outboxMessages(topic, key string, n int) []*outbox.Message {
	msgs := make([]*outbox.Message, n)
	for i := range msgs {
		msgs[i] = outboxMessage(topic, key, i)
	}
	return msgs
}

func publishBatch(p *Publisher, ctx context.Context, msgs []*outbox.Message) []outbox.Result {
	results := make([]outbox.Result, len(msgs))
	p.PublishBatch(ctx, msgs, results)
	return results
}

func publishNumbers(t testing.TB, p *Publisher, stream string, from, to int) {
	t.Helper()
	for n := from; n <= to; n++ {
		if err := p.Publish(stream, message.NewMessage(strconv.Itoa(n), []byte("payload "+strconv.Itoa(n)))); err != nil {
			t.Fatal(err)
		}
	}
}

func statuses(results []outbox.Result) string {
	var s string
	for _, r := range results {
		s += string("-DPRU"[r.Status]) // not attempted, Done, Passing, peRmanent, Unknown
	}
	return s
}

func streamLen(t testing.TB, c redis.UniversalClient, stream string) int64 {
	t.Helper()
	n, err := c.XLen(context.Background(), stream).Result()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func pendingCount(t testing.TB, c redis.UniversalClient, stream string) int64 {
	t.Helper()
	p, err := c.XPending(context.Background(), stream, "group").Result()
	if err != nil {
		t.Fatal(err)
	}
	return p.Count
}

// privateRedis is a server of the test's own, which may be starved and killed.
type privateRedis struct {
	t    *testing.T
	dir  string
	port int
	args []string
	cmd  *exec.Cmd
	gone chan struct{}
}

func startRedis(t *testing.T, args ...string) *privateRedis {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatalf("start a private Redis: %v; install the Debian package redis-server", err)
	}
	port, err := process.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	r := &privateRedis{t: t, dir: t.TempDir(), port: port, args: args}
	t.Cleanup(r.kill)
	r.start()
	return r
}

func (r *privateRedis) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

func (r *privateRedis) start() {
	r.t.Helper()
	r.cmd = exec.Command("redis-server", append([]string{"--port", strconv.Itoa(r.port), "--bind", "127.0.0.1",
		"--dir", r.dir, "--save", ""}, r.args...)...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{}
	process.DieWithParent(r.cmd.SysProcAttr, syscall.SIGKILL)
	gone := make(chan struct{})
	r.gone = gone
	if err := process.Launch(r.cmd, func(error) { close(gone) }); err != nil {
		r.t.Fatal(err)
	}
	c := redis.NewClient(&redis.Options{Addr: r.addr(), MaxRetries: -1, DialerRetries: 1})
	defer c.Close()
	testkit.Eventually(r.t, patience, func() bool { return c.Ping(context.Background()).Err() == nil }, "the private Redis answers")
}

// kill is kill -9.
func (r *privateRedis) kill() {
	if r.cmd == nil {
		return
	}
	r.cmd.Process.Kill()
	<-r.gone
	r.cmd = nil
}

func (r *privateRedis) client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: r.addr()})
	r.t.Cleanup(func() { c.Close() })
	return c
}
