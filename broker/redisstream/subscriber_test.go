package redisstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/testkit"
)

func TestSubscriberDeliversInOrder(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	p := newPublisher(t, PublisherConfig{Client: c})
	publishNumbers(t, p, stream, 1, 20) // before anybody listens
	s := newSubscriber(t, SubscriberConfig{Client: c})
	ch := subscribe(t, s, stream)
	for n := 1; n <= 40; n++ {
		if n == 20 {
			publishNumbers(t, p, stream, 21, 40)
		}
		m := receive(t, ch)
		if want := strconv.Itoa(n); m.UUID != want || string(m.Payload) != "payload "+want || m.Metadata[HeaderDeliveryCount] != "1" ||
			m.Metadata[HeaderStream] != stream || !strings.Contains(m.Metadata[HeaderEntryID], "-") {
			t.Fatalf("got message %s %v, want %s", m.UUID, m.Metadata, want)
		}
		testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 1 }, "one entry is in flight")
		m.Ack()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	isClosed(t, ch)
	if n := pendingCount(t, c, stream); n != 0 {
		t.Errorf("%d entries are pending after Close", n)
	}
	if consumers := c.XInfoConsumers(context.Background(), stream, "group").Val(); len(consumers) != 0 {
		t.Errorf("a consumer with a name of our own is left behind: %v", consumers)
	}
}

func TestSubscribeFromNow(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	p := newPublisher(t, PublisherConfig{Client: c})
	publishNumbers(t, p, stream, 1, 3)
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c, Start: FromNow}), stream)
	publishNumbers(t, p, stream, 4, 4)
	m := receive(t, ch)
	if m.UUID != "4" {
		t.Errorf("got message %s, want 4", m.UUID)
	}
	m.Ack()
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 0 }, "message 4 is acknowledged")

	// The group is lost, the stream is not: what was before "now" stays out.
	if err := c.XGroupDestroy(context.Background(), stream, "group").Err(); err != nil {
		t.Fatal(err)
	}
	if m = receive(t, ch); m.UUID != "4" {
		t.Errorf("after the group was destroyed: got message %s, want 4 again", m.UUID)
	}
	m.Ack()
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 0 }, "message 4 is acknowledged again")
	// Both are lost: everything in the new stream is new.
	if err := c.Del(context.Background(), stream).Err(); err != nil {
		t.Fatal(err)
	}
	publishNumbers(t, p, stream, 5, 5)
	if m = receive(t, ch); m.UUID != "5" {
		t.Errorf("after the stream was deleted: got message %s, want 5", m.UUID)
	}
	m.Ack()
}

// A consumer that has its name again gets first what it held when it died.
func TestRestartedConsumerGetsItsOwnFirst(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 4)
	die(t, c, stream, "c1", 2)
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c, Consumer: "c1"}), stream)
	for n, want := range []string{"1 2", "2 2", "3 1", "4 1"} {
		m := receive(t, ch)
		if got := m.UUID + " " + m.Metadata[HeaderDeliveryCount]; got != want {
			t.Errorf("message %d is %q, want %q", n, got, want)
		}
		m.Ack()
	}
}

// die leaves n entries pending, as a consumer does that is killed.
func die(t *testing.T, c *redis.Client, stream, consumer string, n int) {
	t.Helper()
	ctx := context.Background()
	if err := c.XGroupCreateMkStream(ctx, stream, "group", "0").Err(); err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") {
		t.Fatal(err)
	}
	if err := c.XReadGroup(ctx, &redis.XReadGroupArgs{Group: "group", Consumer: consumer, Streams: []string{stream, ">"}, Count: int64(n)}).Err(); err != nil {
		t.Fatal(err)
	}
}

func init() {
	testkit.RegisterChild("hold", func(args []string) {
		options, _ := redis.ParseURL(args[0])
		s, err := NewSubscriber(SubscriberConfig{Client: redis.NewClient(options), Group: "group", MinIdle: time.Second})
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

func TestKilledConsumersEntryIsClaimed(t *testing.T) {
	t.Parallel()
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	p := newPublisher(t, PublisherConfig{Client: c})
	publishNumbers(t, p, stream, 1, 1)
	child := testkit.StartChild(t, "hold", testkit.URL(t, testkit.RedisServer), stream)
	testkit.Eventually(t, patience, func() bool { return strings.Contains(child.Output(), "holds 1") }, "the child holds the entry")

	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c, MinIdle: time.Second}), stream)
	// As long as it lives nobody takes it away, however long it holds it.
	select {
	case m := <-ch:
		t.Fatalf("message %s of a living consumer was claimed", m.UUID)
	case <-time.After(2 * time.Second):
	}
	child.Kill9()
	m := receive(t, ch)
	if m.UUID != "1" || m.Metadata[HeaderDeliveryCount] != "2" {
		t.Errorf("got message %s %v", m.UUID, m.Metadata)
	}
	m.Ack()
}

// Neither the consumer itself nor another one takes an entry whose handler is slow.
func TestSlowHandlerRunsOnce(t *testing.T) {
	t.Parallel()
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	const idle = time.Second // short enough for a test, long enough for a machine that is busy
	p := newPublisher(t, PublisherConfig{Client: c})
	publishNumbers(t, p, stream, 1, 2)
	var runs sync.Map
	var consumers sync.WaitGroup
	var handled atomic.Int32
	for range 3 {
		s := newSubscriber(t, SubscriberConfig{Client: c, MinIdle: idle, ClaimInterval: 10 * time.Millisecond})
		ch := subscribe(t, s, stream)
		consumers.Go(func() {
			for m := range ch {
				n, _ := runs.LoadOrStore(m.UUID, new(atomic.Int32))
				n.(*atomic.Int32).Add(1)
				<-time.After(3 * idle) // the handler
				m.Ack()
				handled.Add(1)
			}
		})
		defer s.Close()
	}
	testkit.Eventually(t, patience, func() bool { return handled.Load() >= 2 && pendingCount(t, c, stream) == 0 }, "both are handled")
	runs.Range(func(id, n any) bool {
		if got := n.(*atomic.Int32).Load(); got != 1 {
			t.Errorf("message %s was handled %d times", id, got)
		}
		return true
	})
}

func TestNackComesAgainFirst(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 2)
	s := newSubscriber(t, SubscriberConfig{Client: c, NackDelay: 10 * time.Millisecond})
	ch := subscribe(t, s, stream)
	for n := 1; n <= 4; n++ {
		m := receive(t, ch)
		if m.UUID != "1" || m.Metadata[HeaderDeliveryCount] != strconv.Itoa(n) {
			t.Fatalf("delivery %d is message %s %v", n, m.UUID, m.Metadata)
		}
		if m.Context().Err() != nil {
			t.Errorf("delivery %d: the context is cancelled: %v", n, m.Context().Err())
		}
		m.Metadata["scribbled"] = "x"
		if n == 4 {
			m.Ack()
			break
		}
		m.Nack()
	}
	m := receive(t, ch)
	if m.UUID != "2" || m.Metadata[HeaderDeliveryCount] != "1" || m.Metadata["scribbled"] != "" {
		t.Errorf("got message %s %v, want 2", m.UUID, m.Metadata)
	}
	// The count is Redis' own, so that it survives us.
	m.Nack()
	m = receive(t, ch)
	pending := c.XPendingExt(context.Background(), &redis.XPendingExtArgs{Stream: stream, Group: "group", Start: "-", End: "+", Count: 10}).Val()
	if len(pending) != 1 || pending[0].RetryCount != 2 {
		t.Errorf("pending is %v, want one entry with 2 deliveries", pending)
	}
	m.Ack()
}

func TestUndecodableEntryIsHandedOver(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	ctx := context.Background()
	bad := []struct {
		reason string
		values []any
	}{
		{"no field " + fieldUUID, []any{"order", "42", "total", "\xff\x00"}},
		{"no field payload", []any{fieldUUID, "1", "metadata", ""}},
		{"no msgpack map", []any{fieldUUID, "1", "metadata", "\xdf\xff\xff\xff\xff", "payload", "p"}},
		{"no msgpack map", []any{fieldUUID, "1", "metadata", "garbage", "payload", "p"}},
	}
	for _, b := range bad {
		if err := c.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: b.values}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	good := message.NewMessage("1", nil)
	good.Metadata = message.Metadata{HeaderUndecodable: "a stranger says so", HeaderDeliveryCount: "99"}
	if err := newPublisher(t, PublisherConfig{Client: c}).Publish(stream, good); err != nil {
		t.Fatal(err)
	}
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c, NackDelay: time.Millisecond}), stream)
	for i, b := range bad {
		m := receive(t, ch)
		id := m.UUID
		m.Nack()
		m = receive(t, ch)
		var raw RawEntry
		if err := json.Unmarshal(m.Payload, &raw); err != nil {
			t.Fatal(err)
		}
		if m.UUID != id || len(id) != 36 || !strings.Contains(m.Metadata[HeaderUndecodable], b.reason) ||
			raw.Stream != stream || raw.ID != m.Metadata[HeaderEntryID] || len(raw.Fields)+len(raw.Binary) != len(b.values)/2 {
			t.Errorf("entry %d is message %s %v %s", i, m.UUID, m.Metadata, m.Payload)
		}
		if i == 0 && (raw.Fields["order"] != "42" || string(raw.Binary["total"]) != "\xff\x00") {
			t.Errorf("raw entry is %+v", raw)
		}
		m.Ack()
	}
	if m := receive(t, ch); m.UUID != "1" || m.Metadata[HeaderUndecodable] != "" || m.Metadata[HeaderDeliveryCount] != "1" {
		t.Errorf("got message %s %v, want 1", m.UUID, m.Metadata)
	} else {
		m.Ack()
	}
}

func TestTrimmedPendingEntryIsPassedOver(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	for _, consumer := range []string{"c1", "other"} { // our own from before, and a dead one's
		stream := prefix + consumer
		publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 3)
		die(t, c, stream, "c1", 2)
		first := c.XRange(context.Background(), stream, "-", "+").Val()[0].ID
		if err := c.XDel(context.Background(), stream, first).Err(); err != nil {
			t.Fatal(err)
		}
		s := newSubscriber(t, SubscriberConfig{Client: c, Consumer: consumer, MinIdle: minMinIdle})
		ch := subscribe(t, s, stream)
		got := ""
		for range 2 {
			m := receive(t, ch)
			got += m.UUID
			m.Ack()
		}
		if got != "23" && (consumer == "c1" || got != "32") { // another's comes when it has been silent for long enough
			t.Errorf("consumer %s: messages are %s", consumer, got)
		}
		testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 0 }, "nothing is pending")
		if n := s.missing.Load(); n != 1 {
			t.Errorf("consumer %s: %d entries are counted as missing, want 1", consumer, n)
		}
	}
}

// An entry that is trimmed while its handler runs is handled to the end.
func TestTrimmedInFlight(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 2)
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c, MinIdle: minMinIdle, NackDelay: time.Millisecond}), stream)
	m := receive(t, ch)
	if err := c.XTrimMaxLen(context.Background(), stream, 1).Err(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 0 }, "Redis notices")
	select {
	case <-m.Context().Done():
		t.Errorf("the handler was cancelled: %v", context.Cause(m.Context()))
	case <-time.After(2 * minMinIdle):
	}
	m.Nack()
	if m = receive(t, ch); m.UUID != "1" {
		t.Errorf("got message %s, want 1 again", m.UUID)
	}
	m.Ack()
	if m = receive(t, ch); m.UUID != "2" {
		t.Errorf("got message %s, want 2", m.UUID)
	}
	m.Ack()
}

func TestLostGroupIsHealed(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	p := newPublisher(t, PublisherConfig{Client: c})
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c}), stream)
	publishNumbers(t, p, stream, 1, 1)
	receive(t, ch).Ack()

	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 0 }, "message 1 is acknowledged")
	c.Del(context.Background(), stream)
	publishNumbers(t, p, stream, 2, 2)
	m := receive(t, ch)
	if m.UUID != "2" {
		t.Errorf("after the stream was deleted: got message %s, want 2", m.UUID)
	}
	// Even while a message is in flight: it comes again, unless it is acknowledged in
	// the new group, which takes us for its owner.
	c.XGroupDestroy(context.Background(), stream, "group")
	m.Ack()
	publishNumbers(t, p, stream, 3, 3)
	if m = receive(t, ch); m.UUID == "2" {
		m.Ack()
		m = receive(t, ch)
	}
	if m.UUID != "3" {
		t.Errorf("after the group was destroyed: got message %s, want 3", m.UUID)
	}
	m.Ack()
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 0 }, "all are acknowledged")
}

func TestServerKilledInMidRun(t *testing.T) {
	noLeaks(t)
	server := startRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	c := redis.NewClient(&redis.Options{Addr: server.addr(), DialerRetries: 1})
	defer c.Close()
	p := newPublisher(t, PublisherConfig{Client: c})
	var log safeBuffer
	s := newSubscriber(t, SubscriberConfig{Client: c, Logger: log.logger()})
	ch := subscribe(t, s, "s")
	for n := 1; n <= 6; n += 2 {
		publishNumbers(t, p, "s", n, n+1)
		m := receive(t, ch)
		server.kill() // while a message is in flight
		m.Ack()
		testkit.Eventually(t, patience, func() bool { return strings.Count(log.String(), "is interrupted") == (n+1)/2 }, "the trouble is noticed")
		server.start()
		if got := m.UUID; got != strconv.Itoa(n) {
			t.Fatalf("got message %s, want %d", got, n)
		}
		m = receive(t, ch)
		if m.UUID != strconv.Itoa(n+1) {
			t.Fatalf("got message %s, want %d", m.UUID, n+1)
		}
		m.Ack()
		testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, "s") == 0 }, "all is acknowledged")
	}
	if got := strings.Count(log.String(), "level=WARN"); got != 3 {
		t.Errorf("%d warnings for 3 outages:\n%s", got, log.String())
	}
}

// The answer to a read is lost after Redis has made the entry ours: it is
// found among our own at once, before any other.
func TestLostReplyOfReadLosesNothing(t *testing.T) {
	noLeaks(t)
	direct, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.RedisServer))
	c := testkit.RedisAt(t, proxy.URL(), func(o *redis.Options) { o.MaxRetries = 3 })
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: direct}), stream, 1, 3)
	var lost atomic.Int32
	proxy.OnClientBytes(func(b []byte) testkit.Action {
		if strings.Contains(string(b), "xreadgroup") && strings.Contains(string(b), ">") && lost.Add(1) == 1 {
			return testkit.LoseReply
		}
		return testkit.Forward
	})
	s := newSubscriber(t, SubscriberConfig{Client: c})
	ch := subscribe(t, s, stream)
	for n := 1; n <= 3; n++ {
		m := receive(t, ch)
		if m.UUID != strconv.Itoa(n) {
			t.Fatalf("got message %s, want %d", m.UUID, n)
		}
		m.Ack()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Somebody else claims an entry that is in flight here: the handler is told.
func TestClaimedAwayCancelsTheHandler(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 2)
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c, MinIdle: 300 * time.Millisecond, ClaimInterval: time.Hour}), stream)
	m := receive(t, ch)
	if err := c.XClaim(context.Background(), &redis.XClaimArgs{Stream: stream, Group: "group", Consumer: "thief", Messages: []string{m.Metadata[HeaderEntryID]}}).Err(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Context().Done():
	case <-time.After(patience):
		t.Fatal("the message's context was not cancelled")
	}
	if cause := context.Cause(m.Context()); !errors.Is(cause, ErrLost) {
		t.Errorf("the cause is %v, want ErrLost", cause)
	}
	m.Nack()
	if m = receive(t, ch); m.UUID != "2" {
		t.Errorf("got message %s, want 2: the other one is the thief's now", m.UUID)
	}
	m.Ack()
	owner := c.XPendingExt(context.Background(), &redis.XPendingExtArgs{Stream: stream, Group: "group", Start: "-", End: "+", Count: 10, Consumer: "thief"}).Val()
	if len(owner) != 1 {
		t.Errorf("the thief's entry was taken back: %v", owner)
	}
}

func TestSubscriptionsOfOneSubscriberShareTheWork(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 2)
	s := newSubscriber(t, SubscriberConfig{Client: c, Consumer: "c"})
	a, b := subscribe(t, s, stream), subscribe(t, s, stream)
	m, n := receive(t, a), receive(t, b)
	if m.UUID == n.UUID {
		t.Errorf("both got message %s", m.UUID)
	}
	m.Ack()
	n.Ack()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names := ""
	for _, consumer := range c.XInfoConsumers(context.Background(), stream, "group").Val() {
		names += consumer.Name + " "
	}
	if names != "c c/2 " {
		t.Errorf("consumers are %s", names)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var _ message.Subscriber = (*Subscriber)(nil)
