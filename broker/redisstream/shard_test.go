package redisstream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/testkit"
)

func TestShardOf(t *testing.T) {
	// The published test vectors of FNV-1a.
	for key, want := range map[string]uint32{"": 0x811c9dc5, "a": 0xe40c292c, "foobar": 0xbf9cf968} {
		for _, n := range []int{1, 7, 256} {
			if got := ShardOf(key, n); got != int(want%uint32(n)) {
				t.Errorf("%q of %d: %d", key, n, got)
			}
		}
	}
	if got := ShardStream("order", 3); got != "{order:3}" {
		t.Errorf("stream %s", got)
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct{ members, shards int }{{1, 4}, {2, 4}, {3, 4}, {5, 4}, {3, 256}} {
		var members []string
		for m := range c.members {
			members = append(members, fmt.Sprint("m", m))
		}
		total, least, most := 0, c.shards, 0
		for _, m := range members {
			n := share(members, m, c.shards)
			total, least, most = total+n, min(least, n), max(most, n)
		}
		if total != c.shards || most-least > 1 {
			t.Errorf("%d shards among %d: %d in all, %d to %d each", c.shards, c.members, total, least, most)
		}
	}
	if n := share([]string{"a"}, "b", 4); n != 0 {
		t.Errorf("a stranger has %d", n)
	}
}

func shardedSubscriber(t *testing.T, c *redis.Client, minIdle time.Duration) *Subscriber {
	return newSubscriber(t, SubscriberConfig{Client: c, Shards: 4, MaxInFlight: 8, MinIdle: minIdle,
		ClaimInterval: 20 * time.Millisecond, NackDelay: time.Millisecond, MaxNackDelay: 5 * time.Millisecond})
}

func allPending(t *testing.T, c *redis.Client, topic string) (n int64) {
	for _, stream := range shardStreams(topic, 4) {
		n += pendingCount(t, c, stream)
	}
	return n
}

// Members come and go while messages flow: each key stays in order, nothing is
// lost, and nothing is handled twice since all of them stop properly.
func TestShardsAreHandedOver(t *testing.T) {
	noLeaks(t)
	c, topic := testkit.Redis(t), testkit.Prefix(t)+"t"
	p := newPublisher(t, PublisherConfig{Client: c, Shards: 4})
	const keys, rounds, each = 40, 5, 8
	l := newLedger()
	var handlers sync.WaitGroup
	consume := func() *Subscriber {
		s := shardedSubscriber(t, c, 10*time.Second)
		ch := subscribe(t, s, topic)
		handlers.Go(func() {
			for m := range ch {
				handlers.Go(func() {
					l.enter(m)
					<-time.After(time.Millisecond) // the handler
					l.leave(m, !strings.HasSuffix(m.UUID, "3") || m.Metadata[HeaderDeliveryCount] != "1")
				})
			}
		})
		return s
	}
	members := []*Subscriber{consume()}
	for round := range rounds {
		var msgs []*message.Message
		for i := range each {
			for k := range keys {
				msgs = append(msgs, numbered(k, round*each+i))
			}
		}
		if err := p.Publish(topic, msgs...); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, patience, func() bool { return l.done() > round*each*keys }, "messages flow")
		if round%2 == 0 {
			members = append(members, consume(), consume())
			testkit.Eventually(t, patience, func() bool { return owners(t, c, topic) == min(len(members), 4) }, "the shards are spread")
		} else if err := members[0].Close(); err != nil {
			t.Error(err)
		} else {
			members = members[1:]
		}
	}
	testkit.Eventually(t, patience, func() bool { return l.done() == keys*rounds*each && allPending(t, c, topic) == 0 }, "all are handled")
	for _, s := range members {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	handlers.Wait()
	l.check(t, 0)
	for _, stream := range shardStreams(topic, 4) {
		if c.XLen(context.Background(), stream).Val() == 0 {
			t.Errorf("nothing went to %s", stream)
		}
	}
	if left := c.Keys(context.Background(), "{"+topic+"*:lease:*").Val(); len(left) != 0 {
		t.Errorf("leases are left: %v", left)
	}
}

// owners is how many members hold leases.
func owners(t *testing.T, c *redis.Client, topic string) int {
	t.Helper()
	var members []string
	for _, stream := range shardStreams(topic, 4) {
		token := c.Get(context.Background(), stream+":lease:group").Val()
		if i := strings.LastIndex(token, "/"); i > 0 {
			members = append(members, token[:i])
		}
	}
	slices.Sort(members)
	return len(slices.Compact(members))
}

func init() {
	testkit.RegisterChild("hold-shards", func(args []string) {
		options, _ := redis.ParseURL(args[0])
		s, err := NewSubscriber(SubscriberConfig{Client: redis.NewClient(options), Group: "group", Shards: 4, MaxInFlight: 8, MinIdle: time.Second})
		if err != nil {
			panic(err)
		}
		ch, err := s.Subscribe(context.Background(), args[1])
		if err != nil {
			panic(err)
		}
		fmt.Fprintln(os.Stdout, "holds", (<-ch).UUID)
		select {}
	})
}

// What a killed member held is its successor's, first and in order.
func TestKilledMembersShardsAreTakenOver(t *testing.T) {
	noLeaks(t)
	c, topic := testkit.Redis(t), testkit.Prefix(t)+"t"
	p := newPublisher(t, PublisherConfig{Client: c, Shards: 4})
	publishSharded(t, p, topic, 20, 0, 5)
	child := testkit.StartChild(t, "hold-shards", testkit.URL(t, testkit.RedisServer), topic)
	testkit.Eventually(t, patience, func() bool { return strings.Contains(child.Output(), "holds") && allPending(t, c, topic) == 100 }, "the child holds them all")
	child.Kill9()
	publishSharded(t, p, topic, 20, 5, 10)
	s, l := shardedSubscriber(t, c, time.Second), newLedger()
	ch := subscribe(t, s, topic)
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for m := range ch {
			l.enter(m)
			l.leave(m, true)
		}
	})
	testkit.Eventually(t, patience, func() bool { return l.done() == 200 && allPending(t, c, topic) == 0 }, "all are handled and acknowledged")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	handlers.Wait()
	l.check(t, 200) // on a busy machine a lease of a second may run out
}

// Whoever has lost his lease gets nothing more, and his handlers are told.
func TestLostLeaseStopsItsReader(t *testing.T) {
	noLeaks(t)
	c, topic := testkit.Redis(t), testkit.Prefix(t)+"t"
	p := newPublisher(t, PublisherConfig{Client: c, Shards: 4})
	s := shardedSubscriber(t, c, time.Hour) // nothing runs out in this test
	ch := subscribe(t, s, topic)
	publishSharded(t, p, topic, 1, 0, 2)
	m := receive(t, ch)
	stream := m.Metadata[HeaderStream]
	if err := c.Set(context.Background(), stream+":lease:group", "a thief", 0).Err(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Context().Done():
	case <-time.After(patience):
		t.Fatal("the message's context was not cancelled")
	}
	if cause := context.Cause(m.Context()); !errors.Is(cause, ErrLost) {
		t.Errorf("the cause is %v", cause)
	}
	m.Ack() // nobody listens: the thief is handling it
	if err := c.Set(context.Background(), stream+":lease:group", "a thief", time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	for n := range 2 { // the thief is gone: both come, the first again
		m := receive(t, ch)
		if want := fmt.Sprint("k0/", n); m.UUID != want {
			t.Errorf("got %s, want %s", m.UUID, want)
		}
		m.Ack()
	}
	testkit.Eventually(t, patience, func() bool { return allPending(t, c, topic) == 0 }, "all are acknowledged")
	if lags, err := s.Lag(context.Background()); err != nil || len(lags) != 4 {
		t.Errorf("lag of the shards: %v, %v", lags, err)
	}
}

func TestShardsConfigFaults(t *testing.T) {
	c := testkit.Redis(t)
	_, err := NewSubscriber(SubscriberConfig{Client: c, Group: "g", Shards: 257})
	_, err2 := NewPublisher(PublisherConfig{Client: c, Shards: -1})
	_, err3 := NewSubscriber(SubscriberConfig{Client: c, Group: "g", MaxInFlight: -1, ReadAhead: -2})
	for field, err := range map[string]error{"SubscriberConfig.Shards is 257": err, "PublisherConfig.Shards is -1": err2,
		"MaxInFlight is -1": err3, "ReadAhead is -2": err3} {
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
