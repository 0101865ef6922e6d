package redisstream

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// addIDs adds entries with given ids.
func addIDs(t *testing.T, c redis.UniversalClient, stream string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		must(t, c.XAdd(context.Background(), &redis.XAddArgs{Stream: stream, ID: id, Values: []string{"k", "v"}}).Err())
	}
}

func idsOf(t *testing.T, c redis.UniversalClient, stream string) string {
	t.Helper()
	entries, err := c.XRange(context.Background(), stream, "-", "+").Result()
	must(t, err)
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.ID)
	}
	return strings.Join(ids, " ")
}

func TestTrimKeepsWhatAnyGroupNeeds(t *testing.T) {
	noLeaks(t)
	ctx, c, prefix := context.Background(), testkit.Redis(t), testkit.Prefix(t)
	const big = "9007199254740993" // 2^53 + 1: no number of Lua
	read := func(stream, group string, count int64) {
		must(t, c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: group, Consumer: "c", Streams: []string{stream, ">"}, Count: count, Block: -1}).Err())
	}
	ack := func(stream, group string, ids ...string) { must(t, c.XAck(ctx, stream, group, ids...).Err()) }
	for name, tt := range map[string]struct {
		ids, want string
		consume   func(stream string) // by groups a and b, which begin with the first entry
	}{
		"nobody has read": {"1-1 2-1 3-1", "1-1 2-1 3-1", func(string) {}},
		"one has read nothing": {"1-1 2-1 3-1", "1-1 2-1 3-1", func(s string) {
			read(s, "a", 3)
			ack(s, "a", "1-1", "2-1", "3-1")
		}},
		"one lags": {"1-1 2-1 3-1 4-1", "2-1 3-1 4-1", func(s string) {
			read(s, "a", 4)
			ack(s, "a", "1-1", "2-1", "3-1", "4-1")
			read(s, "b", 2)
			ack(s, "b", "1-1", "2-1")
		}},
		"pending": {"1-1 2-1 3-1 4-1", "2-1 3-1 4-1", func(s string) {
			for _, g := range []string{"a", "b"} {
				read(s, g, 4)
				ack(s, g, "1-1", "3-1", "4-1")
			}
			ack(s, "a", "2-1")
		}},
		"all consumed": {"1-1 2-1 3-1", "3-1", func(s string) {
			for _, g := range []string{"a", "b"} {
				read(s, g, 3)
				ack(s, g, "1-1", "2-1", "3-1")
			}
		}},
		"rewound, with a pending entry above": {"1-1 2-1 3-1", "1-1 2-1 3-1", func(s string) {
			for _, g := range []string{"a", "b"} {
				read(s, g, 3)
				ack(s, g, "1-1", "2-1")
			}
			must(t, c.XGroupSetID(ctx, s, "a", "0").Err())
		}},
		"numbers, not text": {"9-1 10-9 10-10 10-11", "10-9 10-10 10-11", func(s string) {
			read(s, "a", 3)
			ack(s, "a", "9-1", "10-9", "10-10")
			read(s, "b", 2)
			ack(s, "b", "9-1", "10-9")
		}},
		"large numbers": {"1-9007199254740991 1-9007199254740992 1-" + big + " 18446744073709551615-1", "1-9007199254740992 1-" + big + " 18446744073709551615-1", func(s string) {
			read(s, "a", 3)
			ack(s, "a", "1-9007199254740991", "1-9007199254740992", "1-"+big)
			read(s, "b", 2)
			ack(s, "b", "1-9007199254740991", "1-9007199254740992")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := prefix + strings.ReplaceAll(name, " ", "_")
			ids := strings.Fields(tt.ids)
			addIDs(t, c, s, ids...)
			must(t, c.XGroupCreate(ctx, s, "a", "0").Err())
			must(t, c.XGroupCreate(ctx, s, "b", "0").Err())
			tt.consume(s)
			if n, err := Trim(ctx, c, s, Approximately()); n != 0 || err != nil {
				t.Errorf("approximately: %d removed, error %v; want none, of a single node", n, err)
			}
			n, err := Trim(ctx, c, s)
			if want := int64(len(ids) - len(strings.Fields(tt.want))); n != want || err != nil {
				t.Errorf("%d removed, error %v; want %d", n, err, want)
			}
			if got := idsOf(t, c, s); got != tt.want {
				t.Errorf("left are %s; want %s", got, tt.want)
			}
		})
	}
}

// More than a step, and whole nodes of the stream.
func TestTrimGoesInSteps(t *testing.T) {
	noLeaks(t)
	ctx, c, s := context.Background(), testkit.Redis(t), testkit.Prefix(t)+"s"
	const n, upTo = 25_000, 22_222
	pipe := c.Pipeline()
	for i := range n {
		pipe.XAdd(ctx, &redis.XAddArgs{Stream: s, ID: "1-" + strconv.Itoa(i+1), Values: []string{"k", "v"}})
	}
	_, err := pipe.Exec(ctx)
	must(t, err)
	must(t, c.XGroupCreate(ctx, s, "g", "1-"+strconv.Itoa(upTo)).Err())
	about, err := Trim(ctx, c, s, Approximately())
	if about <= upTo-2*100 || about >= upTo || err != nil {
		t.Errorf("approximately: %d removed, error %v; want a little less than %d", about, err, upTo)
	}
	rest, err := Trim(ctx, c, s)
	if about+rest != upTo-1 || err != nil || streamLen(t, c, s) != n-upTo+1 {
		t.Errorf("%d and %d removed, %d left, error %v; want %d in all", about, rest, streamLen(t, c, s), err, upTo-1)
	}
}

// Two groups of several consumers, one of them slow, publishing and trimming
// all at once: every message reaches both groups.
func TestTrimBesideConsumersLosesNothing(t *testing.T) {
	noLeaks(t)
	ctx, c, stream := context.Background(), testkit.Redis(t, func(o *redis.Options) { o.PoolSize = 20 }), testkit.Prefix(t)+"s"
	const n = 400
	var log safeBuffer
	got := map[string]chan string{"quick": make(chan string, 10*n), "lagging": make(chan string, 10*n)}
	pace := make(chan struct{}) // of the lagging group
	for group, seen := range got {
		for i := range 3 {
			s := newSubscriber(t, SubscriberConfig{Client: c, Group: group, Consumer: strconv.Itoa(i), MinIdle: patience,
				NackDelay: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
			ch := subscribe(t, s, stream)
			go func() {
				nacked := make(map[string]bool)
				for m := range ch {
					if group == "lagging" {
						<-pace
					}
					if strings.HasSuffix(m.UUID, "7") && !nacked[m.UUID] {
						nacked[m.UUID] = true
						m.Nack()
						continue
					}
					seen <- m.UUID
					m.Ack()
				}
			}()
		}
	}
	published := make(chan struct{})
	p := newPublisher(t, PublisherConfig{Client: c})
	go func() {
		defer close(published)
		for i := range n {
			if err := p.Publish(stream, message.NewMessage(strconv.Itoa(i), nil)); err != nil {
				t.Error(err)
			}
		}
	}()
	trim := func() (removed int64) {
		t.Helper()
		removed, err := Trim(ctx, c, stream)
		must(t, err)
		return removed
	}
	all := func(group string) func() bool {
		seen := make(map[string]bool)
		return func() bool {
			trim()
			for len(got[group]) > 0 {
				seen[<-got[group]] = true
			}
			return len(seen) == n
		}
	}
	testkit.Eventually(t, patience, all("quick"), "the quick group has all of it")
	<-published
	if left := streamLen(t, c, stream); left != n {
		t.Errorf("%d entries are left, want all %d: the lagging group has handled none", left, n)
	}
	close(pace)
	testkit.Eventually(t, patience, all("lagging"), "the lagging group has all of it")
	testkit.Eventually(t, patience, func() bool { trim(); return streamLen(t, c, stream) == 1 }, "all but the last entry is trimmed")
	if strings.Contains(log.String(), "trimmed or deleted") {
		t.Errorf("entries have vanished under a consumer:\n%s", log.String())
	}
}

func TestTrimRefuses(t *testing.T) {
	noLeaks(t)
	ctx, c, prefix := context.Background(), testkit.Redis(t), testkit.Prefix(t)
	addIDs(t, c, prefix+"groupless", "1-1", "2-1")
	must(t, c.Set(ctx, prefix+"string", "x", 0).Err())
	server := startRedis(t)
	dead := redis.NewClient(&redis.Options{Addr: server.addr(), DialerRetries: 1})
	defer dead.Close()
	server.kill()
	for _, tt := range []struct {
		client redis.UniversalClient
		stream string
		is     error
		says   string
	}{
		{c, prefix + "groupless", ErrNoGroups, "start its consumers first"},
		{c, prefix + "nowhere", ErrNoGroups, "no stream of that name"},
		{c, prefix + "string", nil, "no stream: correct the name"},
		{dead, prefix + "groupless", outbox.ErrUnavailable, "no answer"},
		{nil, prefix + "groupless", ErrInvalidConfig, "Trim.Client is nil"},
	} {
		n, err := Trim(ctx, tt.client, tt.stream)
		if n != 0 || err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), tt.stream) {
			t.Errorf("%d removed, error %v; want one that says %q", n, err, tt.says)
		}
	}
	if n := streamLen(t, c, prefix+"groupless"); n != 2 {
		t.Errorf("%d entries are left of the stream without groups, want 2", n)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Trim(cancelled, c, prefix+"groupless"); !errors.Is(err, context.Canceled) || errors.Is(err, outbox.ErrUnavailable) {
		t.Errorf("cancelled: error %v", err)
	}
}

// An answer that is lost is told; the step is not sent again, uncounted.
func TestTrimTellsALostReply(t *testing.T) {
	noLeaks(t)
	ctx, direct, s := context.Background(), testkit.Redis(t), testkit.Prefix(t)+"s"
	addIDs(t, direct, s, "1-1", "2-1", "3-1")
	must(t, direct.XGroupCreate(ctx, s, "g", "3-1").Err())
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.RedisServer))
	c := testkit.RedisAt(t, proxy.URL(), func(o *redis.Options) { o.MaxRetries = 3 })
	proxy.OnClientBytes(func(b []byte) testkit.Action {
		if bytes.Contains(b, []byte("\r\n=\r\n")) { // the exact step
			return testkit.LoseReply
		}
		return testkit.Forward
	})
	if n, err := Trim(ctx, c, s); n != 0 || !errors.Is(err, outbox.ErrUnavailable) {
		t.Errorf("%d removed, error %v; want ErrUnavailable", n, err)
	}
	proxy.OnClientBytes(nil)
	if n, err := Trim(ctx, c, s); n != 0 || err != nil || idsOf(t, direct, s) != "3-1" {
		t.Errorf("again: %d removed, error %v, left are %s", n, err, idsOf(t, direct, s))
	}
}

func TestDedupAndTrimOnACluster(t *testing.T) {
	noLeaks(t)
	ctx, c := context.Background(), startCluster(t)
	d := newDedup(t, DedupConfig{Client: c})
	for range 8 { // on both nodes
		event := uuid.New()
		must(t, d.Release(ctx, "h", event, claims(t, d, "h", event, handlers.ClaimFresh)))
		must(t, d.Complete(ctx, "h", event, claims(t, d, "h", event, handlers.ClaimFresh)))
		claims(t, d, "h", event, handlers.ClaimDone)
	}
	for _, stream := range []string{"a", "b", "c", "d"} { // on both nodes, as TestCluster knows
		addIDs(t, c, stream, "1-1", "2-1", "3-1")
		must(t, c.XGroupCreate(ctx, stream, "g", "2-1").Err())
		if n, err := Trim(ctx, c, stream); n != 1 || err != nil || idsOf(t, c, stream) != "2-1 3-1" {
			t.Errorf("stream %s: %d removed, error %v, left are %s", stream, n, err, idsOf(t, c, stream))
		}
	}
}
