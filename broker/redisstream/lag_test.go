package redisstream

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestLag(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	ctx := context.Background()
	s := newSubscriber(t, SubscriberConfig{Client: c})
	if lags, err := s.Lag(ctx); len(lags) != 0 || err != nil {
		t.Errorf("before Subscribe: %v, %v", lags, err)
	}
	ch := subscribe(t, s, stream)
	if lags, err := s.Lag(ctx); err != nil || len(lags) != 1 || lags[0] != (Lag{Stream: stream, Group: "group"}) {
		t.Errorf("of an empty stream: %+v, %v", lags, err)
	}
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 4)
	m := receive(t, ch)
	lags, err := s.Lag(ctx)
	if err != nil || len(lags) != 1 {
		t.Fatalf("%v, %v", lags, err)
	}
	if l := lags[0]; l.Entries != 4 || l.Waiting != 3 || l.Pending != 1 || l.Oldest < 0 || l.Oldest > patience {
		t.Errorf("one of four in flight: %+v", l)
	}
	testkit.Eventually(t, patience, func() bool {
		lags, err := s.Lag(ctx)
		return err == nil && len(lags) == 1 && lags[0].Oldest >= 5*time.Millisecond
	}, "it grows older")
	second := c.XRange(ctx, stream, "-", "+").Val()[2].ID
	c.XDel(ctx, stream, second) // Redis does not know the lag now
	if lags, err = s.Lag(ctx); err != nil || lags[0].Entries != 3 || lags[0].Waiting != 2 {
		t.Errorf("one of them deleted: %+v, %v", lags, err)
	}
	m.Ack()
	receive(t, ch).Ack()
	receive(t, ch).Ack()
	testkit.Eventually(t, patience, func() bool {
		lags, err := s.Lag(ctx)
		return err == nil && len(lags) == 1 && lags[0] == (Lag{Stream: stream, Group: "group"})
	}, "nothing is behind")

	server := startRedis(t)
	dead := newSubscriber(t, SubscriberConfig{Client: server.client()})
	subscribe(t, dead, "s")
	server.kill()
	if lags, err := dead.Lag(ctx); len(lags) != 0 || !errors.Is(err, outbox.ErrUnavailable) {
		t.Errorf("of a dead server: %v, %v", lags, err)
	}
}

func TestWaitReplicas(t *testing.T) {
	noLeaks(t)
	master := startRedis(t)
	c := redis.NewClient(&redis.Options{Addr: master.addr(), DialerRetries: 1})
	defer c.Close()
	p := newPublisher(t, PublisherConfig{Client: c, WaitReplicas: 1, WaitTimeout: 50 * time.Millisecond})
	results := publishBatch(p, context.Background(), outboxMessages("s", "k", 3))
	var short *ReplicasError
	if statuses(results) != "UUU" || !errors.As(results[0].Err, &short) || short.Got != 0 || !errors.Is(short, outbox.ErrUnavailable) {
		t.Errorf("without a replica: %s, %v", statuses(results), results[0].Err)
	}
	_, port, _ := strings.Cut(master.addr(), ":")
	startRedis(t, "--replicaof", "127.0.0.1", port)
	testkit.Eventually(t, patience, func() bool {
		return statuses(publishBatch(p, context.Background(), outboxMessages("s", "k", 3))) == "DDD"
	}, "the replica confirms")
	if got := statuses(publishBatch(newPublisher(t, PublisherConfig{Client: c, WaitReplicas: 2, WaitTimeout: 20 * time.Millisecond}),
		context.Background(), append(outboxMessages("s", "k", 2), outboxMessages("t", "k", 1)...))); got != "UUU" {
		t.Errorf("with one replica of two: %s", got)
	}

	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{master.addr()}})
	defer cluster.Close()
	for name, cfg := range map[string]PublisherConfig{
		"WaitReplicas is -1": {Client: c, WaitReplicas: -1},
		"ReadTimeout":        {Client: c, WaitReplicas: 1, WaitTimeout: time.Hour},
		"WaitTimeout is -1s": {Client: c, WaitTimeout: -time.Second},
		"ClusterClient":      {Client: cluster, WaitReplicas: 1},
	} {
		if _, err := NewPublisher(cfg); !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
