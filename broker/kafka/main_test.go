package kafka

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const patience = 30 * time.Second // for what comes at once on a machine that is not busy

// noLeaks fails the test if a goroutine outlives it. Call it first.
func noLeaks(t *testing.T) {
	t.Helper()
	running := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, running) })
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// shared is the shared Kafka.
func shared(t testing.TB) Cluster { return Cluster{Brokers: testkit.Kafka(t)} }

// through is a Kafka behind a proxy: whatever address it names, the proxy is
// dialled.
func through(p *testkit.Proxy) Cluster {
	return Cluster{Brokers: []string{p.Addr()}, Options: []kgo.Opt{kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, p.Addr())
	})}}
}

// admin is for what tests set up and look at.
func admin(t testing.TB, c Cluster) *kadm.Client {
	t.Helper()
	client, err := kgo.NewClient(c.options()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

// newTopic makes a topic, with settings as "name", "value", which lasts as long as
// the test.
func newTopic(t testing.TB, a *kadm.Client, partitions int32, settings ...string) string {
	t.Helper()
	name := testkit.Name(t)
	configs := make(map[string]*string)
	for i := 0; i < len(settings); i += 2 {
		configs[settings[i]] = &settings[i+1]
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := a.CreateTopic(ctx, partitions, 1, configs, name); err != nil {
		t.Fatalf("create topic %s: %v", name, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		a.DeleteTopic(ctx, name) // it may be gone, and so may the server
	})
	testkit.Eventually(t, patience, func() bool {
		d, err := a.ListTopics(ctx, name)
		return err == nil && d.Has(name) && len(d[name].Partitions) == int(partitions)
	}, "topic %s exists", name)
	return name
}

func newPublisher(t testing.TB, cfg PublisherConfig) *Publisher {
	t.Helper()
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

func statuses(results []outbox.Result) string {
	var s string
	for _, r := range results {
		s += string("-DPRU"[r.Status]) // not attempted, Done, Passing, peRmanent, Unknown
	}
	return s
}

// firstErr is for failed tests.
func firstErr(results []outbox.Result) error {
	for _, r := range results {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

// readAll reads what a topic holds, by partition and in order.
func readAll(t testing.TB, c Cluster, topic string) map[int32][]*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ends, err := admin(t, c).ListEndOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	open := make(map[int32]int64) // where each partition ends
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			open[o.Partition] = o.Offset
		}
	})
	client, err := kgo.NewClient(c.options(kgo.ConsumeTopics(topic))...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	found := make(map[int32][]*kgo.Record)
	for len(open) > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read topic %s: the end did not come: %v left", topic, open)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			found[r.Partition] = append(found[r.Partition], r)
			if r.Offset+1 >= open[r.Partition] {
				delete(open, r.Partition)
			}
		})
	}
	return found
}

func count(records map[int32][]*kgo.Record) (n int) {
	for _, rs := range records {
		n += len(rs)
	}
	return n
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

func message1(id, payload string, metadata ...string) *message.Message {
	m := message.NewMessage(id, []byte(payload))
	for i := 0; i < len(metadata); i += 2 {
		m.Metadata[metadata[i]] = metadata[i+1]
	}
	return m
}
