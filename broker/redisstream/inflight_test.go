package redisstream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

// numbered is the nth message of a key; its UUID says so.
func numbered(key, n int) *message.Message {
	m := message.NewMessage(fmt.Sprintf("k%d/%d", key, n), []byte("payload"))
	m.Metadata[events.HeaderPartitionKey] = "k" + strconv.Itoa(key)
	return m
}

// publishKeys adds n messages of each key, in turn.
func publishKeys(t testing.TB, p *Publisher, topic string, keys, n int) {
	t.Helper()
	publishSharded(t, p, topic, keys, 0, n)
}

// publishSharded adds those numbered from first to before last.
func publishSharded(t testing.TB, p *Publisher, topic string, keys, first, last int) {
	t.Helper()
	var msgs []*message.Message
	for n := first; n < last; n++ {
		for k := range keys {
			msgs = append(msgs, numbered(k, n))
		}
	}
	if err := p.Publish(topic, msgs...); err != nil {
		t.Fatal(err)
	}
}

// ledger watches the handlers of several messages at once.
type ledger struct {
	mu      sync.Mutex
	active  map[string]bool // keys
	most    int             // at once
	next    map[string]int  // key -> the number that is to be handled next
	handled int
	repeats int // of what was handled already
	faults  []string
}

func newLedger() *ledger { return &ledger{active: map[string]bool{}, next: map[string]int{}} }

// enter notes that a handler has got m.
func (l *ledger) enter(m *message.Message) {
	key, number, _ := strings.Cut(m.UUID, "/")
	n, _ := strconv.Atoi(number)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.active[key] {
		l.faults = append(l.faults, m.UUID+" beside another one of its key")
	}
	if n > l.next[key] {
		l.faults = append(l.faults, fmt.Sprintf("%s before %d", m.UUID, l.next[key]))
	}
	l.active[key] = true
	l.most = max(l.most, len(l.active))
}

// leave notes what has become of it.
func (l *ledger) leave(m *message.Message, acked bool) {
	key, number, _ := strings.Cut(m.UUID, "/")
	n, _ := strconv.Atoi(number)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.active, key)
	switch {
	case !acked:
		m.Nack()
		return
	case n < l.next[key]:
		l.repeats++
	default:
		l.next[key]++
		l.handled++
	}
	m.Ack()
}

func (l *ledger) done() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.handled
}

func (l *ledger) check(t *testing.T, repeats int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.faults {
		t.Error(f)
	}
	if l.repeats > repeats {
		t.Errorf("%d messages were handled again, %d may be", l.repeats, repeats)
	}
}

func TestManyInFlightKeepTheOrderOfEachKey(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishKeys(t, newPublisher(t, PublisherConfig{Client: c}), stream, 30, 20)
	s := newSubscriber(t, SubscriberConfig{Client: c, MaxInFlight: 16, NackDelay: time.Millisecond, MaxNackDelay: 5 * time.Millisecond})
	ch, l := subscribe(t, s, stream), newLedger()
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for m := range ch {
			handlers.Go(func() {
				l.enter(m)
				<-time.After(time.Duration(rand.IntN(1000)) * time.Microsecond) // the handler
				l.leave(m, rand.IntN(10) > 0)
			})
		}
	})
	testkit.Eventually(t, patience, func() bool { return l.done() == 600 && pendingCount(t, c, stream) == 0 }, "all are handled and acknowledged")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	handlers.Wait()
	l.check(t, 0)
	if l.most < 4 || l.most > 16 {
		t.Errorf("%d handlers at once, want up to 16", l.most)
	}
}

// What is read ahead is kept fresh, too: nobody else takes it.
func TestSlowHandlersOfManyRunOnce(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishKeys(t, newPublisher(t, PublisherConfig{Client: c}), stream, 20, 3)
	const idle = time.Second
	l := newLedger()
	var handlers sync.WaitGroup
	var all []*Subscriber
	for range 2 {
		s := newSubscriber(t, SubscriberConfig{Client: c, MaxInFlight: 20, MinIdle: idle, ClaimInterval: 10 * time.Millisecond})
		ch := subscribe(t, s, stream)
		all = append(all, s)
		handlers.Go(func() {
			for m := range ch {
				handlers.Go(func() {
					<-time.After(idle * 3 / 4) // the handler; the last of a key waits for 9/4
					m.Ack()
					l.mu.Lock()
					l.handled++
					l.mu.Unlock()
				})
			}
		})
	}
	testkit.Eventually(t, patience, func() bool { return l.done() >= 60 && pendingCount(t, c, stream) == 0 }, "all are handled")
	for _, s := range all {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	handlers.Wait()
	if n := l.done(); n != 60 {
		t.Errorf("60 messages were handled %d times", n)
	}
}

func TestCloseGivesBackWhatWasReadAhead(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishKeys(t, newPublisher(t, PublisherConfig{Client: c}), stream, 100, 5)
	s := newSubscriber(t, SubscriberConfig{Client: c, MaxInFlight: 8, MinIdle: time.Hour})
	ch, l := subscribe(t, s, stream), newLedger()
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) >= 200 }, "many are read")
	for range 20 {
		m := receive(t, ch)
		l.enter(m)
		l.leave(m, true)
	}
	last := receive(t, ch)
	l.enter(last)
	closed := closing(s)
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) < 500 }, "it closes")
	l.leave(last, true)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	heir := newSubscriber(t, SubscriberConfig{Client: c, MaxInFlight: 8, MinIdle: time.Hour, ClaimInterval: 10 * time.Millisecond})
	for ch := subscribe(t, heir, stream); l.done() < 500; {
		m := receive(t, ch)
		l.enter(m)
		l.leave(m, true)
	}
	l.check(t, 0)
}

// The answer to a read of many is lost while others are in flight: they are
// found again, and nothing is handled twice.
func TestLostReplyOfReadOfMany(t *testing.T) {
	noLeaks(t)
	direct, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.RedisServer))
	c := testkit.RedisAt(t, proxy.URL(), func(o *redis.Options) { o.MaxRetries = 3 })
	publishKeys(t, newPublisher(t, PublisherConfig{Client: direct}), stream, 10, 30)
	var reads atomic.Int32
	proxy.OnClientBytes(func(b []byte) testkit.Action {
		if strings.Contains(string(b), "xreadgroup") && reads.Add(1)%5 == 3 {
			return testkit.LoseReply
		}
		return testkit.Forward
	})
	s := newSubscriber(t, SubscriberConfig{Client: c, MaxInFlight: 4, ReadAhead: 20})
	l := newLedger()
	for ch := subscribe(t, s, stream); l.done() < 300; {
		m := receive(t, ch)
		l.enter(m)
		l.leave(m, true)
	}
	l.check(t, 0)
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, direct, stream) == 0 }, "all are acknowledged")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Of many in flight, those that somebody else claims are cancelled and no others.
func TestClaimedAwayOfMany(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishKeys(t, newPublisher(t, PublisherConfig{Client: c}), stream, 4, 2)
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c, MaxInFlight: 4, MinIdle: 300 * time.Millisecond, ClaimInterval: time.Hour}), stream)
	got := map[string]*message.Message{}
	for range 4 {
		m := receive(t, ch)
		got[m.UUID] = m
	}
	var ids []string
	for _, e := range c.XRange(context.Background(), stream, "-", "+").Val() {
		if id := e.Values[fieldUUID]; id == "k1/0" || id == "k2/1" { // one in flight, one behind another
			ids = append(ids, e.ID)
		}
	}
	if err := c.XClaim(context.Background(), &redis.XClaimArgs{Stream: stream, Group: "group", Consumer: "thief", Messages: ids}).Err(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-got["k1/0"].Context().Done():
	case <-time.After(patience):
		t.Fatal("the message's context was not cancelled")
	}
	rest := map[string]bool{}
	for id, m := range got {
		if id != "k1/0" && m.Context().Err() != nil {
			t.Errorf("%s was cancelled, too", id)
		}
		m.Ack()
	}
	for range 3 {
		m := receive(t, ch)
		rest[m.UUID] = true
		m.Ack()
	}
	if !rest["k0/1"] || !rest["k1/1"] || !rest["k3/1"] {
		t.Errorf("the rest is %v", rest)
	}
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 2 }, "what is the thief's stays his")
}
