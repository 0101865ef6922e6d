package rabbitmq

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// One node of our own for what harms a server: starting one takes seven seconds.
func TestPrivateNode(t *testing.T) {
	noLeaks(t) // the node ends before that is looked at
	node := testkit.PrivateRabbitMQ(t)
	t.Run("memory alarm", func(t *testing.T) { memoryAlarm(t, node) })
	t.Run("frozen", func(t *testing.T) { frozen(t, node) })
	if os.Getenv("POSTBUS_TEST_LONG") != "" { // TestConformance kills a server, too
		t.Run("killed", func(t *testing.T) { killed(t, node) })
	}
}

// While the server takes no messages, calls end with their deadlines, then fail
// at once; consumers go on; closing does not hang; afterwards all is well.
func memoryAlarm(t *testing.T, node *testkit.PrivateRabbitMQNode) {
	server := ConnectionConfig{URL: node.URL()}
	q := testkit.Name(t)
	declareAt(t, server, Topology{Queues: []Queue{{Name: q}}})
	var told lines
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange, Connection: server, Timeout: 700 * time.Millisecond, Logger: told.logger()})
	other := newPublisher(t, PublisherConfig{Kind: DefaultExchange, Connection: server, Timeout: 700 * time.Millisecond})
	allDone(t, publishBatch(p, mixed(q, 10, 3)...))
	allDone(t, publishBatch(other, outboxMessage(q, "k", 0)))

	node.Control("set_vm_memory_high_watermark", "0")
	defer node.Control("set_vm_memory_high_watermark", "0.4")
	calls := 0
	testkit.Eventually(t, patience, func() bool {
		began, last := time.Now(), outbox.Result{}
		large := outboxMessage(q, "large", 0)
		large.Payload = make([]byte, 8<<20) // more than the sockets hold
		for _, r := range publishBatch(p, large, outboxMessage(q, "small", 0)) {
			if r.Status == outbox.Permanent || r.Err != nil && !errors.Is(r.Err, outbox.ErrUnavailable) {
				t.Fatal(r)
			}
			last = r
		}
		calls++
		took := time.Since(began)
		if took > 3*time.Second {
			t.Fatalf("a call took %s", took)
		}
		return last.Status == outbox.Passing && strings.Contains(last.Err.Error(), "takes no messages") && took < 200*time.Millisecond
	}, "a call to fail at once")
	if calls > 10 {
		t.Errorf("it took %d calls", calls)
	}
	if told.count("publishers are blocked") == 0 || !strings.Contains(told.String(), "memory") {
		t.Errorf("logged: %s", told.String())
	}

	// The other publisher finds out in the middle of a call, and closes at once.
	publishBatch(other, mixed(q, 100, 2)...)
	began := time.Now()
	other.Close()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("Close took %s", took)
	}
	s := newSubscriber(t, SubscriberConfig{Connection: server, MaxInFlight: 50})
	ch := subscribe(t, s, q)
	for range 31 {
		receive(t, ch).Ack()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	node.Control("set_vm_memory_high_watermark", "0.4")
	testkit.Eventually(t, patience, func() bool { return publishBatch(p, outboxMessage(q, "k", 0))[0].Status == outbox.Done }, "messages to be taken again")
}

// A frozen server keeps its connections and answers nothing.
func frozen(t *testing.T, node *testkit.PrivateRabbitMQNode) {
	server := ConnectionConfig{URL: node.URL(), ConnectTimeout: time.Second}
	q := testkit.Name(t)
	declareAt(t, ConnectionConfig{URL: node.URL()}, Topology{Queues: []Queue{{Name: q}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange, Connection: server, Timeout: 1200 * time.Millisecond})
	allDone(t, publishBatch(p, outboxMessage(q, "k", 0)))
	node.Stop()
	began := time.Now()
	r := publishBatch(p, outboxMessage(q, "k", 1))[0]
	if took := time.Since(began); r.Status != outbox.Unknown || !errors.Is(r.Err, outbox.ErrUnavailable) || took > 3*time.Second {
		t.Errorf("after %s: %v", took, r)
	}
	r = publishBatch(p, outboxMessage(q, "k", 1))[0] // over a new connection, which nobody answers
	if r.Status != outbox.Passing || !errors.Is(r.Err, outbox.ErrUnavailable) {
		t.Errorf("the second: %v", r)
	}
	began = time.Now()
	if err := p.Close(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("Close took %s: %v", time.Since(began), err)
	}
	node.Cont()
	p = newPublisher(t, PublisherConfig{Kind: DefaultExchange, Connection: server})
	testkit.Eventually(t, patience, func() bool { return publishBatch(p, outboxMessage(q, "k", 2))[0].Status == outbox.Done }, "the server to be back")
}

// SIGKILL under load, and a restart: what was confirmed is there, each key in
// order, on both kinds of queues, and both sides go on.
func killed(t *testing.T, node *testkit.PrivateRabbitMQNode) {
	server := ConnectionConfig{URL: node.URL()}
	name := testkit.Name(t)
	defer func() {
		if t.Failed() {
			t.Log(node.Control("list_queues", "name", "type", "state", "messages", "leader", "online"))
		}
	}()
	kinds := []QueueType{Quorum, Classic}
	const goroutines, keys = 2, 5
	var publishers, consumers sync.WaitGroup
	done := make(chan struct{})
	ledgers := make([]*ledger, len(kinds))
	var subscribers []*Subscriber
	for _, typ := range kinds {
		declareAt(t, server, Topology{Queues: []Queue{{Name: name + typ.String(), Type: typ, DeliveryLimit: limitOf(typ)}}})
	}
	// RabbitMQ writes down which quorum queues it has some seconds after it has said
	// that they are there. Killed before, it loses such a queue, with all that was
	// confirmed: it comes back empty and without a leader.
	node.Settle()
	for i, typ := range kinds {
		q := name + typ.String()
		p := newPublisher(t, PublisherConfig{Kind: DefaultExchange, Connection: server})
		publishers.Go(func() { publishInOrder(t, p, q, goroutines, keys, done) })
		s := newSubscriber(t, SubscriberConfig{Connection: server, MaxInFlight: 20, NackDelay: time.Millisecond})
		subscribers = append(subscribers, s)
		ledgers[i] = newLedger()
		ch := subscribe(t, s, q)
		consumers.Go(ledgers[i].handle(ch, 10, 0.05))
	}
	handled := func(least int) bool {
		for _, l := range ledgers {
			l.mu.Lock()
			n := l.handled
			l.mu.Unlock()
			if n < least {
				return false
			}
		}
		return true
	}
	testkit.Eventually(t, patience, func() bool { return handled(200) }, "200 to be handled")
	node.Kill()
	node.Start()
	before := make([]int, len(ledgers))
	for i, l := range ledgers {
		l.mu.Lock()
		before[i] = l.handled
		l.mu.Unlock()
	}
	testkit.Eventually(t, time.Minute, func() bool { return handled(max(before[0], before[1]) + 200) }, "both sides to go on")
	close(done)
	publishers.Wait()
	testkit.Eventually(t, time.Minute, func() bool {
		for _, l := range ledgers {
			l.mu.Lock()
			whole := len(l.next) == goroutines*keys
			for _, n := range l.next {
				whole = whole && n > 0 && n%20 == 0
			}
			l.mu.Unlock()
			if !whole {
				return false
			}
		}
		for _, typ := range kinds {
			q, err := admin(t, node.URL()).QueueDeclarePassive(name+typ.String(), true, false, false, false, nil)
			if err != nil || q.Messages > 0 {
				return false
			}
		}
		return true
	}, "everything to be handled")
	for _, s := range subscribers {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	consumers.Wait()
	for i, l := range ledgers {
		l.check(t)
		t.Logf("%s: %d handled, %d repeats", kinds[i], l.handled, l.repeats)
	}
}
