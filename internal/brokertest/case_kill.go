package brokertest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// killedServer kills it under load and starts it again.
func killedServer(r *room) (string, error) {
	server := r.b.Private(r.t)
	r.address = server.URL()
	topic := r.topic()
	l := newLedger()
	if _, err := r.consume(topic, l.handler(0.02)); err != nil {
		return "", err
	}
	s := r.load(r.publisher(), topic, l)
	s.emulated.Store(r.b.Emulated != "")
	kills := 1
	if Long {
		kills = 5
	}
	var away time.Duration
	if s, ok := server.(interface{ Settle() }); ok {
		s.Settle()
	}
	for range kills {
		if err := s.progress(200, r.b.Patience); err != nil {
			return "", err
		}
		server.Kill()
		server.Start()
		began := time.Now()
		if err := s.progress(ahead+100, 2*r.b.Patience); err != nil {
			return "", fmt.Errorf("after the server is back: %w", err)
		}
		away = max(away, time.Since(began))
	}
	figures, err := s.finish(r, kills, r.b.Capabilities.OrderPerKey == Yes && r.b.Emulated == "")
	return figuresOf("%s; on the way again %s after the server", figures, away.Round(10*time.Millisecond)), err
}

// holder is the child that takes a message and never settles it.
const holder = "brokertest.holder"

var registered = map[string]Broker{}

// Register lets the suite start a consumer of that broker as a process of its own, and kill it. Call
// it from init; the package's TestMain must be testkit.Main.
func Register(brokers ...Broker) {
	for _, b := range brokers {
		registered[b.Name] = b
	}
	testkit.RegisterChild(holder, hold)
}

func hold(args []string) {
	b, ok := registered[args[0]]
	if !ok {
		panic("no such broker: " + args[0])
	}
	s, err := b.Subscriber(Options{Address: args[1], Timeout: callTimeout, MaxInFlight: 1, Failover: takeOver,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), OnEnd: func(func()) {}})
	if err != nil {
		panic(err)
	}
	queue := args[2]
	if b.Queue != nil {
		queue = b.Queue(queue)
	}
	ch, err := s.Subscribe(context.Background(), queue)
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(os.Stdout, "holds", (<-ch).UUID)
	select {}
}

// killedConsumer: what a dead process had in its hands comes to another.
func killedConsumer(r *room) (string, error) {
	if _, ok := registered[r.b.Name]; !ok {
		r.t.Fatalf("kill a consumer of %s: call brokertest.Register with it from an init function", r.b.Name)
	}
	topic := r.topic()
	var msgs []*outbox.Message
	for n := 1; n <= 5; n++ {
		msgs = append(msgs, numbered(topic, "key", n, 0))
	}
	p := r.publisher()
	for _, m := range msgs {
		if results, err := send(p, []*outbox.Message{m}, callTimeout); err != nil || results[0].Status != outbox.Done {
			return "", fmt.Errorf("publish: %v %v", err, results)
		}
	}
	child := testkit.StartChild(r.t, holder, r.b.Name, r.address, topic)
	if err := until(r.b.Patience, func() bool { return strings.Contains(child.Output(), "holds ") }, "the child to hold a message"); err != nil {
		return "", err
	}
	l := newLedger()
	if _, err := r.consume(topic, l.handler(0)); err != nil {
		return "", err
	}
	child.Kill9()
	began := time.Now()
	if err := until(r.b.Patience, func() bool { return l.done() == len(msgs) }, "all messages to come to the other consumer; %d of %d have", l.done, len(msgs)); err != nil {
		return "", err
	}
	took := time.Since(began).Round(10 * time.Millisecond)
	if err := l.order(); err != nil && r.b.Capabilities.OrderOverMembers == Yes {
		return "", err
	}
	return figuresOf("taken over after %s, %d repeats", took, l.repeated()), nil
}
