package redisstream

import (
	"context"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/internal/testkit/process"
)

// startCluster is two masters that share the slots.
func startCluster(t *testing.T) *redis.ClusterClient {
	t.Helper()
	ctx := context.Background()
	// The nodes' own port is 10,000 above the clients' unless it is said: somebody
	// else's, now and then.
	var bus [2]int
	var nodes []*privateRedis
	for i := range bus {
		var err error
		if bus[i], err = process.FreePort(); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, startRedis(t, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
			"--cluster-node-timeout", "5000", "--cluster-port", strconv.Itoa(bus[i])))
	}
	var clients []*redis.Client
	for i, n := range nodes {
		c := n.client()
		clients = append(clients, c)
		if err := c.Do(ctx, "cluster", "addslotsrange", i*8192, i*8192+8191).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := clients[0].Do(ctx, "cluster", "meet", "127.0.0.1", nodes[1].port, bus[1]).Err(); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		testkit.Eventually(t, patience, func() bool {
			info := c.ClusterInfo(ctx).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_slots_ok:16384")
		}, "the cluster is complete")
	}
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{net.JoinHostPort("127.0.0.1", strconv.Itoa(nodes[0].port))}})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCluster(t *testing.T) {
	noLeaks(t)
	c := startCluster(t)
	p := newPublisher(t, PublisherConfig{Client: c})
	p.limits.chunkMessages = 4
	s := newSubscriber(t, SubscriberConfig{Client: c, Consumer: "c1"})
	topics := []string{"a", "b", "c", "d"} // on both nodes
	var slots []int64
	for _, topic := range topics {
		slots = append(slots, c.ClusterKeySlot(context.Background(), topic).Val()/8192)
	}
	if !slices.Contains(slots, 0) || !slices.Contains(slots, 1) {
		t.Fatalf("all topics are on one node: %v", slots)
	}
	msgs := slices.Concat(outboxMessages("a", "k", 6), outboxMessages("b", "k", 6), outboxMessages("c", "k", 6), outboxMessages("d", "k", 6))
	if got, want := statuses(publishBatch(p, context.Background(), msgs)), strings.Repeat("D", 24); got != want {
		t.Fatalf("results are %s, want %s", got, want)
	}
	for i, topic := range topics {
		ch := subscribe(t, s, topic)
		for n := range 6 {
			m := receive(t, ch)
			if want := msgs[6*i+n].EventID.String(); m.UUID != want {
				t.Errorf("message %d of stream %s is %s, want %s", n, topic, m.UUID, want)
			}
			if n == 0 {
				m.Nack() // the scripts
				m = receive(t, ch)
			}
			m.Ack()
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, topic := range topics {
		if n := pendingCount(t, c, topic); n != 0 {
			t.Errorf("%d entries of stream %s are pending", n, topic)
		}
	}
}

func TestShardsOnACluster(t *testing.T) {
	noLeaks(t)
	c := startCluster(t)
	p := newPublisher(t, PublisherConfig{Client: c, Shards: 8})
	publishSharded(t, p, "order", 20, 0, 5)
	s, l := newSubscriber(t, SubscriberConfig{Client: c, Shards: 8, MaxInFlight: 8, ClaimInterval: 20 * time.Millisecond}), newLedger()
	for ch := subscribe(t, s, "order"); l.done() < 100; {
		m := receive(t, ch)
		l.enter(m)
		l.leave(m, true)
	}
	l.check(t, 0)
	var slots []int64
	for _, stream := range shardStreams("order", 8) {
		testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 0 }, "all is acknowledged")
		slots = append(slots, c.ClusterKeySlot(context.Background(), stream).Val()/8192)
	}
	if !slices.Contains(slots, 0) || !slices.Contains(slots, 1) {
		t.Errorf("all shards are on one node: %v", slots)
	}
	if lags, err := s.Lag(context.Background()); err != nil || len(lags) != 8 {
		t.Errorf("lag: %v, %v", lags, err)
	}
}
