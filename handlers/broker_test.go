package handlers_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
)

// broker is a message broker in memory, with one consumer group per topic. What
// is nacked, or not settled when a subscription ends, goes back to the front.
type broker struct {
	parallel int // messages in flight per subscription

	mu     sync.Mutex
	fails  func(topic string, msg *message.Message) error
	topics map[string]*queue
	closed int // calls of Close
}

type queue struct {
	waiting []*message.Message
	changed chan struct{} // closed at every change
	acked   int
	nacked  int
}

func newBroker(parallel int) *broker {
	return &broker{parallel: parallel, topics: map[string]*queue{}}
}

// change runs f on the queue of a topic.
func (b *broker) change(topic string, f func(q *queue)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.topics[topic]
	if q == nil {
		q = &queue{changed: make(chan struct{})}
		b.topics[topic] = q
	}
	f(q)
	close(q.changed)
	q.changed = make(chan struct{})
}

func (b *broker) Publish(topic string, msgs ...*message.Message) error {
	b.mu.Lock()
	fails := b.fails
	b.mu.Unlock()
	for _, msg := range msgs {
		if err := msg.Context().Err(); err != nil {
			return err
		}
		if fails != nil {
			if err := fails(topic, msg); err != nil {
				return err
			}
		}
		b.change(topic, func(q *queue) { q.waiting = append(q.waiting, msg.Copy()) })
	}
	return nil
}

// failWith sets what Publish returns; nil heals it.
func (b *broker) failWith(fails func(topic string, msg *message.Message) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails = fails
}

func (b *broker) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if topic == "forbidden" {
		return nil, errors.New("not authorized")
	}
	out := make(chan *message.Message)
	var workers sync.WaitGroup
	for range max(b.parallel, 1) {
		workers.Go(func() {
			for msg := b.next(ctx, topic); msg != nil; msg = b.next(ctx, topic) {
				b.deliver(ctx, topic, msg, out)
			}
		})
	}
	go func() { workers.Wait(); close(out) }()
	return out, nil
}

func (b *broker) next(ctx context.Context, topic string) (msg *message.Message) {
	for ctx.Err() == nil {
		var changed chan struct{}
		b.mu.Lock()
		q := b.topics[topic]
		if q == nil {
			q = &queue{changed: make(chan struct{})}
			b.topics[topic] = q
		}
		if len(q.waiting) > 0 {
			msg, q.waiting = q.waiting[0], q.waiting[1:]
		}
		changed = q.changed
		b.mu.Unlock()
		if msg != nil {
			return msg
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return nil
}

func (b *broker) deliver(ctx context.Context, topic string, msg *message.Message, out chan<- *message.Message) {
	back := func() {
		b.change(topic, func(q *queue) {
			q.waiting = append([]*message.Message{msg.Copy()}, q.waiting...)
			q.nacked++
		})
	}
	msg.SetContext(ctx)
	select {
	case out <- msg:
	case <-ctx.Done():
		back()
		return
	}
	select {
	case <-msg.Acked():
		b.change(topic, func(q *queue) { q.acked++ })
	case <-msg.Nacked():
		back()
	case <-ctx.Done():
		back()
	}
}

func (b *broker) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed++
	return nil
}

func (b *broker) acked(topic string) (n int) {
	b.change(topic, func(q *queue) { n = q.acked })
	return n
}

func (b *broker) nacked(topic string) (n int) {
	b.change(topic, func(q *queue) { n = q.nacked })
	return n
}

// waiting copies what is in a topic and not in anybody's hands.
func (b *broker) waiting(topic string) (msgs []*message.Message) {
	b.change(topic, func(q *queue) { msgs = append(msgs, q.waiting...) })
	return msgs
}

// only is the one message that waits in a topic.
func (b *broker) only(t *testing.T, topic string) *message.Message {
	t.Helper()
	msgs := b.waiting(topic)
	if len(msgs) != 1 {
		t.Fatalf("%d messages wait in %s, want one", len(msgs), topic)
	}
	return msgs[0]
}

// endable ends all subscriptions with end.
type endable struct {
	*broker
	end context.Context
}

func (e endable) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(e.end, cancel)
	return e.broker.Subscribe(ctx, topic)
}
