package kafka

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestDescribe(t *testing.T) {
	topology := Topology{Topics: []Topic{
		{Name: "order", Partitions: 12, Replicas: 3, Retention: 7 * 24 * time.Hour, MaxMessageBytes: 2 << 20},
		{Name: "mail", Partitions: 3, Retention: Forever, Settings: map[string]string{"compression.type": "producer"}},
	}}
	const want = `topic "order": 12 partitions, 3 replicas, cleanup.policy=delete, max.message.bytes=2097152, min.insync.replicas=2, retention.ms=604800000
topic "mail": 3 partitions, as many replicas as the cluster's default, cleanup.policy=delete, compression.type=producer, retention.ms=-1
`
	if got := topology.Describe(); got != want {
		t.Errorf("described as\n%swant\n%s", got, want)
	}
}

func TestTopologyFaults(t *testing.T) {
	topology := Topology{Topics: []Topic{
		{Name: "a b"},
		{Name: "order", Partitions: 1, Replicas: 1, MinInSync: 2, Retention: time.Second, Settings: map[string]string{"retention.ms": "1", "cleanup.policy": "compact,delete"}},
		{Name: "order", Partitions: 1, MaxMessageBytes: -1},
	}}
	err := topology.Declare(context.Background(), Cluster{})
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatalf("error is %v", err)
	}
	for _, want := range []string{"Cluster.Brokers", "letters, digits", "Partitions is 0", "MinInSync is 2", "Retention is 1s", "Settings has retention.ms",
		"compaction", "MayDropAllButLatest", "twice", "MaxMessageBytes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not mention %s", err, want)
		}
	}
	if text := topology.Describe(); !strings.Contains(text, "cannot be declared") {
		t.Errorf("described as %s", text)
	}
}

func TestDeclareAndCheck(t *testing.T) {
	noLeaks(t)
	c := shared(t)
	a := admin(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	name := testkit.Name(t)
	topology := Topology{Topics: []Topic{{Name: name, Partitions: 3, Replicas: 1, Retention: time.Hour, MaxMessageBytes: 5000}}}
	if err := topology.Check(ctx, c); !errors.Is(err, ErrNoTopic) || !strings.Contains(err.Error(), name) {
		t.Errorf("before: error is %v", err)
	}
	t.Cleanup(func() { a.DeleteTopic(context.Background(), name) })
	for range 2 { // twice is the same as once
		if err := topology.Declare(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, patience, func() bool { return topology.Check(ctx, c) == nil }, "it is as it was declared")

	topology.Topics[0].Partitions, topology.Topics[0].Retention = 4, 2*time.Hour
	for what, f := range map[string]func(context.Context, Cluster) error{"check": topology.Check, "declare": topology.Declare} {
		if err := f(ctx, c); !errors.Is(err, ErrDiffers) || !strings.Contains(err.Error(), "partitions is 3, not 4") ||
			!strings.Contains(err.Error(), "retention.ms is 3600000, not 7200000") {
			t.Errorf("%s: error is %v", what, err)
		}
	}
	if d, err := a.ListTopics(ctx, name); err != nil || len(d[name].Partitions) != 3 {
		t.Errorf("it was changed: %v, error %v", d[name], err)
	}
	nobody := testkit.NewProxy(t, testkit.Kafka(t)[0])
	nobody.Refuse()
	if err := topology.Check(ctx, Cluster{Brokers: []string{nobody.Addr()}}); !errors.Is(err, outbox.ErrUnavailable) {
		t.Errorf("nobody there: error is %v", err)
	}
}
