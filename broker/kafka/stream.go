package kafka

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/outbox"
)

// A stream carries the single messages that many goroutines publish, through
// one client, which gathers for kgo.ProducerLinger what comes at the same time.
// Here no message of a call stands behind another one, so a failure has nothing
// to hold back. What was sent and could not be answered in time stays in the
// client: it keeps each partition's order, so nothing overtakes it; but when the
// broker has not answered for the whole DeliveryTimeout the client is replaced,
// so that nothing is sent long after its call has ended.
type stream struct {
	p    *Publisher
	opts []kgo.Opt

	mu      sync.Mutex
	current *carrier
}

// A carrier is a client and who uses it.
type carrier struct {
	client *kgo.Client
	limits limits
	line   line
	users  int
	old    bool // to be closed by the last user
}

func newStream(p *Publisher, opts []kgo.Opt) *stream { return &stream{p: p, opts: opts} }

func (s *stream) enter() (*carrier, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		c := new(carrier)
		client, err := newClient(append(s.opts[:len(s.opts):len(s.opts)],
			kgo.RecordPartitioner(newPartitioner(s.p.cfg.Hasher, nil)),
			kgo.ProducerBatchMaxBytesFn(c.limits.ofBatch),
			kgo.WithHooks(&c.line),
		)...)
		if err != nil {
			return nil, err
		}
		c.client = client
		s.current = c
	}
	s.current.users++
	return s.current, nil
}

// leave: replace says that the carrier is to be used no more.
func (s *stream) leave(c *carrier, replace bool) {
	s.mu.Lock()
	if replace && s.current == c {
		s.current = nil
		c.old = true
	}
	c.users--
	last := c.old && c.users == 0
	s.mu.Unlock()
	if last {
		dismiss(c.client, &s.p.calls)
	}
}

func (s *stream) close() {
	s.mu.Lock()
	c := s.current
	s.current = nil
	s.mu.Unlock()
	if c != nil {
		c.client.Close()
	}
}

// publish sends the one message of src.
func (s *stream) publish(ctx context.Context, src source, results []outbox.Result) error {
	p := s.p
	if !p.enter() {
		return ErrClosed
	}
	defer p.calls.Done()
	if err := ctx.Err(); err != nil {
		results[0] = outbox.Result{Status: outbox.NotAttempted, Err: err}
		return nil
	}
	began := time.Now()
	hard, cancel := context.WithTimeout(ctx, p.cfg.DeliveryTimeout)
	defer cancel()
	soft, giveUp := context.WithCancel(hard)
	defer giveUp()
	end, _ := hard.Deadline()
	defer time.AfterFunc(sendingTime(end.Sub(began), src), giveUp).Stop()

	b := &batch{facts: make(map[string]topicFacts)}
	b.begin(src, results)
	if names := b.unknown(p.topics, began); len(names) > 0 {
		if err := p.topics.learn(soft, names); err != nil {
			b.leaveOut(unanswered(ctx, began, nil), err)
			return nil
		}
		b.facts[names[0]], _ = p.topics.get(names[0], began)
	}
	for len(b.todo) > 0 {
		c, err := s.enter()
		if err != nil {
			b.leaveOut(unanswered(ctx, began, nil), err)
			return nil
		}
		s.leave(c, s.send(ctx, hard, soft, c, b, began))
	}
	return nil
}

// send tries once, and says whether the carrier is to be replaced. If another
// call's end has taken the record along, it is left in b.todo.
func (s *stream) send(ctx, hard, soft context.Context, c *carrier, b *batch, began time.Time) (replace bool) {
	topic := b.src.topic(0)
	if f := b.facts[topic]; f.maxBytes > 0 && !c.limits.set(topic, min(f.maxBytes, s.p.limit)) {
		return true
	}
	var one slot
	var w writer
	w.begin(b.src, b.todo)
	if !b.fill(&one, &w, 0, time.Now(), s.p.limit) {
		b.todo = b.todo[:0]
		return false
	}
	answer := make(chan error, 1)
	c.client.Produce(soft, &one.record, func(_ *kgo.Record, err error) { answer <- err })
	var err error
	select {
	case err = <-answer:
	case <-hard.Done():
		b.results[0] = outbox.Result{Status: outbox.Unknown, Err: unanswered(ctx, began, c.line.trouble())(topic, true, nil)}
		b.todo = b.todo[:0]
		return !errors.Is(ctx.Err(), context.Canceled)
	}
	switch {
	case err == nil:
		b.results[0] = outbox.Result{Status: outbox.Done}
	case givenUp(err) && soft.Err() == nil:
		return errors.Is(err, kgo.ErrClientClosed) // it was somebody else's time that was over: once more
	case givenUp(err) || !answered(err):
		b.results[0] = b.unsent(0, unanswered(ctx, began, c.line.trouble()), err)
	case judge(err).oneOfBatch && soft.Err() == nil:
		// Perhaps it was another one of the batch: alone it shows.
		s.alone(ctx, b)
		replace = true
	default:
		b.results[0] = b.refused(0, err)
		replace = true
	}
	b.todo = b.todo[:0]
	return replace
}

// alone sends the message in a batch of its own.
func (s *stream) alone(ctx context.Context, b *batch) {
	s.p.topics.forget(b.src.topic(0))
	if err := s.p.publish(ctx, b.src, b.results); err != nil {
		b.results[0] = outbox.Result{Status: outbox.NotAttempted, Err: err}
	}
}
