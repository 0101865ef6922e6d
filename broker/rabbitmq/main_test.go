package rabbitmq

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const patience = 20 * time.Second // for what comes at once on a machine that is not busy

// noLeaks fails the test if a goroutine outlives it. Call it first.
func noLeaks(t *testing.T) {
	t.Helper()
	running := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, running) })
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func shared(t testing.TB) ConnectionConfig {
	t.Helper()
	return ConnectionConfig{URL: testkit.RabbitMQ(t)}
}

func newPublisher(t testing.TB, cfg PublisherConfig) *Publisher {
	t.Helper()
	if cfg.Connection.URL == "" {
		cfg.Connection = shared(t)
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
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

// admin is a connection with a channel that the test uses as raw client.
func admin(t testing.TB, address string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// declare makes t and removes it with the test.
func declare(t testing.TB, topology Topology) *Topology {
	t.Helper()
	declareAt(t, shared(t), topology)
	return &topology
}

func declareAt(t testing.TB, server ConnectionConfig, topology Topology) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := Declare(ctx, server, topology); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, server, topology) })
}

func remove(t testing.TB, server ConnectionConfig, topology Topology) {
	t.Helper()
	c, _ := topology.compile()
	conn, err := amqp.Dial(server.URL)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Error(err)
		return
	}
	for _, q := range c.queues {
		ch.QueueDelete(q.Name, false, false, false)
	}
	for _, e := range c.exchanges {
		ch.ExchangeDelete(e.Name, false, false)
	}
}

// bytes of a queue that a test reads by itself.
func drain(t testing.TB, ch *amqp.Channel, queue string, n int) []amqp.Delivery {
	t.Helper()
	var all []amqp.Delivery
	testkit.Eventually(t, patience, func() bool {
		for {
			d, ok, err := ch.Get(queue, true)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return len(all) >= n
			}
			all = append(all, d)
		}
	}, "%d messages in queue %s", n, queue)
	if len(all) != n {
		t.Fatalf("queue %s has %d messages, want %d", queue, len(all), n)
	}
	return all
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

func publishBatch(p *Publisher, msgs ...*outbox.Message) []outbox.Result {
	results := make([]outbox.Result, len(msgs))
	p.PublishBatch(context.Background(), msgs, results)
	return results
}

func allDone(t testing.TB, results []outbox.Result) {
	t.Helper()
	for i, r := range results {
		if r.Status != outbox.Done {
			t.Fatalf("message %d of %d: %s: %v", i, len(results), r.Status, r.Err)
		}
	}
}

func statuses(results []outbox.Result) (s []outbox.Status) {
	for _, r := range results {
		s = append(s, r.Status)
	}
	return s
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
