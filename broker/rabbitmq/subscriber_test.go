package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func newSubscriber(t testing.TB, cfg SubscriberConfig) *Subscriber {
	t.Helper()
	if cfg.Connection.URL == "" {
		cfg.Connection = shared(t)
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	s, err := NewSubscriber(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func subscribe(t testing.TB, s *Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	ch, err := s.Subscribe(context.Background(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// A log of what handlers got: per key, the numbers in the order of their first
// acked delivery, and what came again after that.
type ledger struct {
	mu      sync.Mutex
	running map[string]bool
	next    map[string]int
	repeats int
	handled int
	faults  []string
}

func newLedger() *ledger { return &ledger{running: make(map[string]bool), next: make(map[string]int)} }

func (l *ledger) begin(m *message.Message) (key string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key = m.Metadata["partition_key"]
	if _, err := fmt.Sscanf(string(m.Payload), fmt.Sprintf(`{"key":%q,"n":%%d}`, key), &n); err != nil {
		l.faults = append(l.faults, fmt.Sprintf("%v: %s", err, m.Payload))
	}
	if l.running[key] {
		l.faults = append(l.faults, "two of key "+key+" at once")
	}
	l.running[key] = true
	if n > l.next[key] {
		l.faults = append(l.faults, fmt.Sprintf("key %s: %d before %d", key, n, l.next[key]))
	}
	return key, n
}

func (l *ledger) end(m *message.Message, key string, n int, ok bool) {
	l.mu.Lock()
	l.running[key] = false
	if ok {
		l.handled++
		if n == l.next[key] {
			l.next[key]++
		} else {
			l.repeats++
		}
	}
	l.mu.Unlock()
	if ok {
		m.Ack()
	} else {
		m.Nack()
	}
}

func (l *ledger) done(keys, each int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, next := range l.next {
		if next == each {
			n++
		}
	}
	return n == keys
}

func (l *ledger) check(t testing.TB) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.faults) > 0 {
		t.Fatalf("%d faults, the first: %s", len(l.faults), strings.Join(l.faults[:min(3, len(l.faults))], "; "))
	}
}

// handle has goroutines handle what comes, failing as often as fail says.
func (l *ledger) handle(ch <-chan *message.Message, goroutines int, fail float64) (wait func()) {
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for m := range ch {
				key, n := l.begin(m)
				l.end(m, key, n, rand.Float64() >= fail)
			}
		})
	}
	return all.Wait
}

// mixed are n messages of each of keys, dealt out.
func mixed(topic string, keys, n int) (msgs []*outbox.Message) {
	for i := range n {
		for k := range keys {
			msgs = append(msgs, outboxMessage(topic, fmt.Sprint("key ", k), i))
		}
	}
	return msgs
}

// Many in flight, handlers that fail at random: each key in order, one at a
// time, everything handled once and gone from the queue.
func TestOrderPerKeyUnderErrors(t *testing.T) {
	for _, typ := range []QueueType{Quorum, Classic} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, Type: typ}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			allDone(t, publishBatch(p, mixed(q, 20, 25)...))
			s := newSubscriber(t, SubscriberConfig{MaxInFlight: 64, NackDelay: time.Millisecond, MaxNackDelay: 5 * time.Millisecond})
			l := newLedger()
			wait := l.handle(subscribe(t, s, q), 64, 0.2)
			testkit.Eventually(t, patience, func() bool { return l.done(20, 25) }, "all to be handled")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			wait()
			l.check(t)
			if l.handled != 500 {
				t.Errorf("%d were handled, want 500", l.handled)
			}
			if left := ready(t, q); left != 0 {
				t.Errorf("%d are left", left)
			}
		})
	}
}

func ready(t testing.TB, queue string) int {
	t.Helper()
	q, err := admin(t, testkit.RabbitMQ(t)).QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return q.Messages
}

func TestDelivery(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	m := outboxMessage(q, "k", 0)
	allDone(t, publishBatch(p, m))
	s := newSubscriber(t, SubscriberConfig{NackDelay: time.Millisecond})
	type value struct{}
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), value{}, "v"))
	defer cancel()
	ch, err := s.Subscribe(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 3; n++ {
		got := receive(t, ch)
		if got.UUID != m.EventID.String() || string(got.Payload) != string(m.Payload) {
			t.Fatalf("got %+v", got)
		}
		want := map[string]string{"event_type": "order.placed", "schema_version": "2", "partition_key": "k", "content_type": "application/json",
			"postbus_position": "shop/1/0", HeaderQueue: q, HeaderExchange: "", HeaderRoutingKey: q, HeaderDeliveryCount: fmt.Sprint(n)}
		for name, v := range want {
			if is, ok := got.Metadata[name]; !ok || is != v {
				t.Errorf("delivery %d: %s is %q, want %q", n, name, is, v)
			}
		}
		if got.Context().Value(value{}) != "v" || got.Context().Err() != nil {
			t.Error("the context")
		}
		if n < 3 {
			got.Nack()
		} else {
			got.Ack()
			<-got.Context().Done()
		}
	}
	cancel() // as Close, for this subscription
	if _, ok := <-ch; ok {
		t.Error("the channel is open")
	}
}

// What somebody else has written: headers of all types, and a UUID that is none.
func TestForeignMessages(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}})
	raw := admin(t, testkit.RabbitMQ(t))
	put := func(m amqp.Publishing) {
		t.Helper()
		if err := raw.Publish("", q, true, false, m); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Unix(1700000000, 0)
	put(amqp.Publishing{MessageId: "id", Body: []byte("b"), Headers: amqp.Table{
		"s": "x", "i": int32(-7), "l": int64(1) << 40, "f": 1.5, "b": true, "n": nil, "t": at, "raw": []byte("y"),
		"table": amqp.Table{"a": []any{int64(1), "z", at}}, "d": amqp.Decimal{Scale: 2, Value: 12345}, HeaderUndecodable: "not theirs to say"}})
	put(amqp.Publishing{Headers: amqp.Table{headerUUID: int32(5), "why": amqp.Table{"x": []byte{0xff}}}, Body: []byte{0xfe}})
	put(amqp.Publishing{Body: nil})
	s := newSubscriber(t, SubscriberConfig{})
	ch := subscribe(t, s, q)
	got := []*message.Message{receive(t, ch), receive(t, ch), receive(t, ch)}
	slices.SortFunc(got, func(a, b *message.Message) int { return len(b.Metadata) - len(a.Metadata) })
	want := map[string]string{"s": "x", "i": "-7", "l": "1099511627776", "f": "1.5", "b": "true", "n": "", "t": "2023-11-14T22:13:20Z", "raw": "y",
		"table": `{"a":[1,"z","2023-11-14T22:13:20Z"]}`, "d": "12345e-2"}
	for name, v := range want {
		if is, ok := got[0].Metadata[name]; !ok || is != v {
			t.Errorf("%s is %q, want %q", name, is, v)
		}
	}
	if _, said := got[0].Metadata[HeaderUndecodable]; said || got[0].UUID != "id" {
		t.Errorf("%+v", got[0])
	}
	strange := slices.IndexFunc(got, func(m *message.Message) bool { return m.Metadata[HeaderUndecodable] != "" })
	if strange < 0 || !strings.Contains(string(got[strange].Payload), `"body":"/g=="`) || !strings.Contains(string(got[strange].Payload), `"_watermill_message_uuid":5`) {
		t.Errorf("no stand-in, or a poor one: %+v", got)
	}
	for _, m := range got {
		if m.UUID == "" {
			t.Error("a message without a UUID")
		}
		m.Ack()
	}
}

// Given up: after so many nacks, to the dead-letter queue, with its story; the
// others go on.
func TestDeadLetterAfter(t *testing.T) {
	for _, typ := range []QueueType{Quorum, Classic} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			topology := declare(t, Topology{Queues: []Queue{{Name: q, Type: typ}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			allDone(t, publishBatch(p, mixed(q, 2, 3)...))
			s := newSubscriber(t, SubscriberConfig{Topology: topology, DeadLetterAfter: 3, NackDelay: time.Millisecond})
			ch := subscribe(t, s, q)
			nacks, acks := 0, 0
			for acks < 5 {
				m := receive(t, ch)
				if strings.Contains(string(m.Payload), `"key 1","n":1`) {
					m.Nack()
					nacks++
				} else {
					m.Ack()
					acks++
				}
			}
			if nacks != 3 {
				t.Errorf("%d nacks", nacks)
			}
			ch = subscribe(t, newSubscriber(t, SubscriberConfig{}), q+deadSuffix)
			dead := receive(t, ch)
			deaths := Deaths(dead)
			if len(deaths) != 1 || deaths[0].Queue != q || deaths[0].Reason != "rejected" || deaths[0].Count != 1 || !slices.Equal(deaths[0].RoutingKeys, []string{q}) ||
				time.Since(deaths[0].Time) > time.Minute {
				t.Errorf("deaths %+v of %v", deaths, dead.Metadata)
			}
			if dead.Metadata["event_type"] != "order.placed" || dead.Metadata[HeaderUndecodable] != "" {
				t.Errorf("metadata %v", dead.Metadata)
			}
			dead.Ack()
		})
	}
}

// Closing waits for the handlers, whose acks count, and gives the rest back in
// order, without a delay.
func TestCloseDrains(t *testing.T) {
	for _, typ := range []QueueType{Quorum, Classic} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, Type: typ}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			allDone(t, publishBatch(p, outboxMessages(q, "k", 20)...))
			s := newSubscriber(t, SubscriberConfig{})
			ch := subscribe(t, s, q)
			m := receive(t, ch)
			closed := make(chan error, 1)
			go func() { closed <- s.Close() }()
			testkit.Eventually(t, patience, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.closed }, "closing has begun")
			if _, err := s.Subscribe(context.Background(), q); !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
			if m.Context().Err() != nil {
				t.Error("the handler was cancelled at once")
			}
			m.Ack()
			if err := <-closed; err != nil {
				t.Fatal(err)
			}
			if more, ok := <-ch; ok {
				t.Fatalf("got %s while closing", more.Payload)
			}
			next := subscribe(t, newSubscriber(t, SubscriberConfig{}), q)
			var got []string
			for n := 1; n < 20; n++ {
				m := receive(t, next)
				got = append(got, fmt.Sprintf("%s (%s)", m.Payload, m.Metadata[HeaderDeliveryCount]))
				m.Ack()
			}
			for i, text := range got {
				if want := fmt.Sprintf(`{"key":"k","n":%d} `, i+1); !strings.HasPrefix(text, want) {
					t.Fatalf("the others came as %v", got)
				}
			}
		})
	}
}

func TestCloseGivesUpOnStuckHandler(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	allDone(t, publishBatch(p, outboxMessage(q, "k", 0)))
	s := newSubscriber(t, SubscriberConfig{CloseTimeout: 20 * time.Millisecond})
	m := receive(t, subscribe(t, s, q))
	if err := s.Close(); !errors.Is(err, ErrCloseTimeout) {
		t.Fatal(err)
	}
	if cause := context.Cause(m.Context()); !errors.Is(cause, ErrCloseTimeout) {
		t.Error(cause)
	}
	m.Ack() // too late
	again := receive(t, subscribe(t, newSubscriber(t, SubscriberConfig{}), q))
	if again.UUID != m.UUID || again.Metadata[HeaderDeliveryCount] != "2" {
		t.Errorf("got %+v", again)
	}
	again.Ack()
}

func TestSubscriberCloseAtAnyTime(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	allDone(t, publishBatch(p, mixed(q, 10, 10)...))
	if err := newSubscriber(t, SubscriberConfig{}).Close(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		s := newSubscriber(t, SubscriberConfig{CloseTimeout: time.Second})
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				ch, err := s.Subscribe(context.Background(), q)
				if err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
				for m := range ch {
					m.Ack()
				}
			})
		}
		for range 2 {
			all.Go(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	// Nobody reads the channel at all.
	s := newSubscriber(t, SubscriberConfig{CloseTimeout: time.Second})
	subscribe(t, s, q)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
