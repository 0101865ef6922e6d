package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// Connections cut under load: nothing lost, each key in order at its first
// delivery, the handlers of what was taken back are told.
func TestSubscriberCuts(t *testing.T) {
	for _, typ := range []QueueType{Quorum, Classic} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, Type: typ, DeliveryLimit: limitOf(typ)}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			allDone(t, publishBatch(p, mixed(q, 10, 100)...))
			proxy := testkit.NewProxy(t, testkit.RabbitMQ(t))
			s := newSubscriber(t, SubscriberConfig{MaxInFlight: 16, Prefetch: 50, NackDelay: time.Millisecond, Connection: ConnectionConfig{URL: proxy.URL()}})
			l := newLedger()
			wait := l.handle(subscribe(t, s, q), 16, 0.1)
			for cut := range 8 {
				n := 50 * (cut + 1)
				testkit.Eventually(t, patience, func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.handled >= n }, "%d handled", n)
				proxy.CutAll()
			}
			testkit.Eventually(t, patience, func() bool { return l.done(10, 100) }, "all to be handled")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			wait()
			l.check(t)
			if l.repeats > 8*50 {
				t.Errorf("%d repeats", l.repeats)
			}
			t.Logf("%d repeats", l.repeats)
			if left := ready(t, q); left != 0 {
				t.Errorf("%d are left", left)
			}
		})
	}
}

func limitOf(t QueueType) int {
	if t == Quorum {
		return 100
	}
	return 0
}

func TestLostDeliveryCancelsItsHandler(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q}}})
	proxy := testkit.NewProxy(t, testkit.RabbitMQ(t))
	var told lines
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	allDone(t, publishBatch(p, outboxMessage(q, "k", 0)))
	s := newSubscriber(t, SubscriberConfig{Connection: ConnectionConfig{URL: proxy.URL()}, Logger: told.logger()})
	ch := subscribe(t, s, q)
	m := receive(t, ch)
	proxy.CutAll()
	<-m.Context().Done()
	if cause := context.Cause(m.Context()); !errors.Is(cause, ErrLost) {
		t.Error(cause)
	}
	select { // of its key only when the handler is done with the first
	case again := <-ch:
		t.Errorf("got %s beside its own handler", again.UUID)
	default:
	}
	m.Ack() // not heard
	again := receive(t, ch)
	if again.UUID != m.UUID || again.Metadata[HeaderDeliveryCount] != "2" {
		t.Errorf("got %+v", again)
	}
	again.Ack()
	testkit.Eventually(t, patience, func() bool { return told.count("consuming again") == 1 }, "the end of the trouble to be logged")
	if told.count("consuming is interrupted") != 1 {
		t.Errorf("logged: %s", told.String())
	}
}

// The queue is deleted: no ghost comes, it is said, and consuming goes on as soon
// as there is a queue; at once if we may declare it.
func TestQueueDeleted(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	topology := declare(t, Topology{Declare: true, Queues: []Queue{{Name: q}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	var told lines
	ours := subscribe(t, newSubscriber(t, SubscriberConfig{Topology: topology}), q)
	only := subscribe(t, newSubscriber(t, SubscriberConfig{Logger: told.logger()}), q)
	if _, err := admin(t, testkit.RabbitMQ(t)).QueueDelete(q, false, false, false); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() bool { return told.count("cancelled the consumer") == 1 }, "the cancel to be logged")
	testkit.Eventually(t, patience, func() bool { // nobody but the first one can declare it
		q, err := lookAtAnew(t, q)
		return err == nil && q == 2
	}, "both to consume again")
	msgs := mixed(q, 5, 4)
	allDone(t, publishBatch(p, msgs...))
	for range msgs {
		select {
		case m := <-ours:
			m.Ack()
			if m.UUID == "" || len(m.Payload) == 0 {
				t.Errorf("a ghost: %+v", m)
			}
		case m := <-only:
			m.Ack()
			if m.UUID == "" || len(m.Payload) == 0 {
				t.Errorf("a ghost: %+v", m)
			}
		case <-time.After(patience):
			t.Fatal("no message")
		}
	}
}

func lookAtAnew(t testing.TB, queue string) (consumers int, err error) {
	q, err := admin(t, testkit.RabbitMQ(t)).QueueDeclarePassive(queue, true, false, false, false, nil)
	return q.Consumers, err
}

// Two consumers of a single-active-consumer queue come and go: each key in order
// over both.
func TestSingleActiveConsumer(t *testing.T) {
	for _, typ := range []QueueType{Quorum, Classic} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, Type: typ, SingleActiveConsumer: true, DeliveryLimit: limitOf(typ)}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			allDone(t, publishBatch(p, mixed(q, 10, 60)...))
			l := newLedger()
			var waits []func()
			begin := func() *Subscriber {
				s := newSubscriber(t, SubscriberConfig{MaxInFlight: 8, Prefetch: 30})
				waits = append(waits, l.handle(subscribe(t, s, q), 8, 0))
				return s
			}
			old := begin()
			for n := 60; n < 600; n += 60 {
				next := begin()
				testkit.Eventually(t, patience, func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.handled >= n }, "%d handled", n)
				if err := old.Close(); err != nil {
					t.Fatal(err)
				}
				old = next
			}
			testkit.Eventually(t, patience, func() bool { return l.done(10, 60) }, "all to be handled")
			if err := old.Close(); err != nil {
				t.Fatal(err)
			}
			for _, wait := range waits {
				wait()
			}
			l.check(t)
			if l.repeats > 0 {
				t.Errorf("%d repeats, though every consumer closed in good order", l.repeats)
			}
		})
	}
}

// What has been here for longer than the server will wait goes back into the
// queue, with its key, in order.
func TestPutsBackBeforeTheServerLosesPatience(t *testing.T) {
	for _, typ := range []QueueType{Quorum, Classic} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, Type: typ}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			allDone(t, publishBatch(p, outboxMessages(q, "k", 5)...))
			// Patience is half a second.
			s := newSubscriber(t, SubscriberConfig{ConsumerTimeout: time.Second, HandlerLimit: 500 * time.Millisecond, NackDelay: 20 * time.Millisecond, MaxNackDelay: 50 * time.Millisecond})
			ch := subscribe(t, s, q)
			var m *message.Message
			for last := 0; ; { // in place first, counting up; then it comes anew
				m = receive(t, ch)
				var count int
				if _, err := fmt.Sscan(m.Metadata[HeaderDeliveryCount], &count); err != nil || !strings.Contains(string(m.Payload), `"n":0}`) {
					t.Fatalf("got %s, delivery %d, %v", m.Payload, count, err)
				}
				if count <= last {
					break
				}
				last = count
				m.Nack()
			}
			for n := range 5 {
				if n > 0 {
					m = receive(t, ch)
				}
				if want := fmt.Sprintf(`{"key":"k","n":%d}`, n); string(m.Payload) != want {
					t.Fatalf("got %s, want %s", m.Payload, want)
				}
				m.Ack()
			}
		})
	}
}

// Many queues on one subscriber, and one publisher.
func TestManyQueues(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	const n = 20
	var topology Topology
	topology.Declare = true
	for i := range n {
		e := fmt.Sprintf("%s_%d", name, i)
		topology.Exchanges = append(topology.Exchanges, Exchange{Name: e})
		topology.Queues = append(topology.Queues, Queue{Name: e + "_group", Type: Classic, Bindings: []Binding{{Exchange: e}}})
	}
	declare(t, topology)
	p := newPublisher(t, PublisherConfig{Topology: &topology})
	s := newSubscriber(t, SubscriberConfig{Group: "group"})
	l := newLedger()
	var msgs []*outbox.Message
	for i := range n {
		l.handle(subscribe(t, s, topology.Exchanges[i].Name), 2, 0.1)
		for k := range 10 {
			msgs = append(msgs, outboxMessage(topology.Exchanges[i].Name, fmt.Sprint("queue ", i), k))
		}
	}
	allDone(t, publishBatch(p, msgs...))
	testkit.Eventually(t, patience, func() bool { return l.done(n, 10) }, "all to be handled")
	l.check(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLag(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	s := newSubscriber(t, SubscriberConfig{MaxInFlight: 4})
	if all, err := s.Lag(t.Context()); err != nil || len(all) != 0 {
		t.Fatal(all, err)
	}
	ch := subscribe(t, s, q)
	allDone(t, publishBatch(p, mixed(q, 10, 1)...))
	m := receive(t, ch)
	var all []Lag
	testkit.Eventually(t, patience, func() (ok bool) {
		var err error
		if all, err = s.Lag(t.Context()); err != nil {
			t.Fatal(err)
		}
		return all[0].Held == 4
	}, "4 to be held")
	if l := all[0]; len(all) != 1 || l.Queue != q || l.Messages != 10 || l.Ready != 6 || l.Consumers != 1 || l.Oldest <= 0 || l.Oldest > time.Minute {
		t.Errorf("%+v", all)
	}
	m.Ack()
	go func() {
		for m := range ch {
			m.Ack()
		}
	}()
	testkit.Eventually(t, patience, func() bool {
		all, err := s.Lag(t.Context())
		return err == nil && len(all) == 1 && all[0].Messages == 0 && all[0].Oldest == 0
	}, "nothing to be behind")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSubscribeRefused(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic, NoDeadLetterLosesMessages: true}}})
	known := Topology{Queues: []Queue{{Name: q, Type: Classic, NoDeadLetterLosesMessages: true}}}
	for name, c := range map[string]struct {
		cfg   SubscriberConfig
		topic string
		is    error
		text  string
	}{
		"missing":       {SubscriberConfig{Group: "no"}, q, ErrMissing, q + "_no"},
		"reserved":      {SubscriberConfig{}, "amq.x", nil, "reserved for RabbitMQ"},
		"empty":         {SubscriberConfig{}, "", nil, "is empty"},
		"no rights":     {SubscriberConfig{Connection: ConnectionConfig{URL: testkit.RabbitMQPowerless(t, testkit.RabbitMQ(t))}}, q, nil, "refused for user"},
		"not known":     {SubscriberConfig{DeadLetterAfter: 3}, q, nil, "QueuesDeadLetter"},
		"known for not": {SubscriberConfig{DeadLetterAfter: 3, Topology: &known, QueuesDeadLetter: true}, q, nil, "throw away"},
	} {
		t.Run(name, func(t *testing.T) {
			ch, err := newSubscriber(t, c.cfg).Subscribe(context.Background(), c.topic)
			if ch != nil || err == nil || !strings.Contains(err.Error(), c.text) || c.is != nil && !errors.Is(err, c.is) || strings.Contains(err.Error(), "\n") {
				t.Error(err)
			}
		})
	}
}

// Over a fanout exchange, as a relay and a router use it, with several
// goroutines that publish while the subscriber closes and another one takes over.
func TestCloseUnderLoad(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	topology := declare(t, Topology{Declare: true, Exchanges: []Exchange{{Name: name}}, Queues: []Queue{{Name: name + "_g", Bindings: []Binding{{Exchange: name}}}}})
	p := newPublisher(t, PublisherConfig{Topology: topology})
	l := newLedger()
	var publishing sync.WaitGroup
	for g := range 3 {
		publishing.Go(func() {
			for n := range 20 {
				var msgs []*outbox.Message
				for k := range 5 {
					msgs = append(msgs, outboxMessage(name, fmt.Sprintf("%d/%d", g, k), n))
				}
				allDone(t, publishBatch(p, msgs...))
			}
		})
	}
	handle := func(ch <-chan *message.Message) {
		for m := range ch {
			key, n := l.begin(m)
			l.end(m, key, n, true)
		}
	}
	for n := 50; !l.done(15, 20); n += 50 {
		s := newSubscriber(t, SubscriberConfig{Group: "g"})
		ch := subscribe(t, s, name)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() { handle(ch) })
		}
		testkit.Eventually(t, patience, func() bool {
			l.mu.Lock()
			enough := l.handled >= n
			l.mu.Unlock()
			return enough || l.done(15, 20)
		}, "%d handled", n)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		all.Wait()
	}
	publishing.Wait()
	l.check(t)
	if l.repeats > 0 {
		t.Errorf("%d repeats", l.repeats)
	}
}
