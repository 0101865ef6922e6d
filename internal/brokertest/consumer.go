package brokertest

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// consumer handles what comes out of a subscription, each message in a goroutine of its own,
// as Watermill's router does.
type consumer struct {
	sub     message.Subscriber
	running sync.WaitGroup
	ended   chan struct{} // closed when the channel is, and all handlers have returned
	got     atomic.Int64  // deliveries
}

func consume(ch <-chan *message.Message, sub message.Subscriber, handle func(*message.Message)) *consumer {
	c := &consumer{sub: sub, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		for m := range ch {
			c.got.Add(1)
			c.running.Go(func() { handle(m) })
		}
		c.running.Wait()
	}()
	return c
}

// consume subscribes and handles.
func (r *room) consume(topic string, handle func(*message.Message), change ...func(*Options)) (*consumer, error) {
	s := r.subscriber(change...)
	ch, err := r.subscribe(s, topic)
	if err != nil {
		return nil, err
	}
	return consume(ch, s, handle), nil
}

// stop closes the subscriber and waits for its handlers.
func (c *consumer) stop() error {
	if err := call(stuckAfter, c.sub.Close); err != nil {
		return err
	}
	return until(quickly, func() bool {
		select {
		case <-c.ended:
			return true
		default:
			return false
		}
	}, "the channel was not closed")
}

// handler notes each message, works a moment, and nacks that share of the first deliveries.
func (l *ledger) handler(nackShare float64) func(*message.Message) {
	return func(m *message.Message) {
		key, n, ok := identify(m)
		if !ok {
			l.stranger(m)
			m.Ack()
			return
		}
		first := l.arrived(key, n)
		work(m)
		if first && rand.Float64() < nackShare {
			l.nacked(key, n)
			m.Nack()
			return
		}
		l.handled(key, n)
		m.Ack()
	}
}

// work takes up to two milliseconds, so that handlers overlap.
func work(m *message.Message) {
	t := time.NewTimer(rand.N(2 * time.Millisecond))
	defer t.Stop()
	select {
	case <-t.C:
	case <-m.Context().Done():
	}
}

// collector keeps what has come and acks it.
type collector struct {
	mu   sync.Mutex
	msgs []*message.Message
}

func (c *collector) handle(m *message.Message) {
	c.mu.Lock()
	c.msgs = append(c.msgs, m)
	c.mu.Unlock()
	m.Ack()
}

func (c *collector) all() []*message.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*message.Message(nil), c.msgs...)
}

func (c *collector) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.msgs)
}

// find is the first with that UUID, or nil.
func (c *collector) find(uuid string) *message.Message {
	for _, m := range c.all() {
		if m.UUID == uuid {
			return m
		}
	}
	return nil
}
