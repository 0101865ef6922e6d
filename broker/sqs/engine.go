package sqs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/outbox"
)

// engine is what the publishers to SQS and to SNS have in common.
type engine struct {
	targets         targets
	targetName      func(topic string) string
	requests        int
	slots           chan struct{} // as many as requests, over all calls
	timeout         time.Duration
	maxMessageBytes int

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup // those in flight, and requests that were left behind
}

func (p *engine) configure(config string, name func(string) string, requests int, timeout time.Duration, bytes int) (faults []error) {
	if requests < 0 || requests > maxRequests {
		faults = append(faults, fmt.Errorf("%s.Requests is %d: give a number from 1 to %d, or 0 for %d", config, requests, maxRequests, defaultRequests))
		requests = 0
	}
	if timeout < 0 {
		faults = append(faults, fmt.Errorf("%s.Timeout is %s: give a positive duration, or 0 for %s", config, timeout, defaultTimeout))
	}
	if bytes < 0 || bytes > maxBytes {
		faults = append(faults, fmt.Errorf("%s.MaxMessageBytes is %d: give a number from 1 to %d, which is the service's limit, or 0 for that", config, bytes, maxBytes))
	}
	if p.targetName = name; name == nil {
		p.targetName = QueueName
	}
	orDefault(&requests, defaultRequests)
	orDefault(&timeout, defaultTimeout)
	orDefault(&bytes, maxBytes)
	p.requests, p.timeout, p.maxMessageBytes = requests, timeout, bytes
	p.slots = make(chan struct{}, requests)
	return faults
}

func orDefault[T int | time.Duration](v *T, value T) {
	if *v == 0 {
		*v = value
	}
}

// Publish sends msgs to the queue, or SNS topic, of topic. Those with the same
// partition key (metadata events.HeaderPartitionKey) go in order, and stop at the
// first that is not accepted; those without one go in any order. It returns nil
// when all of them were accepted, else a *PublishError that says what became of
// each; ErrClosed after Close. Its context is that of the first message.
func (p *engine) Publish(topic string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	ctx := context.Background()
	if msgs[0] != nil {
		ctx = msgs[0].Context()
	}
	src := watermillMessages{topic, msgs}
	results := make([]outbox.Result, len(msgs))
	if err := p.publish(ctx, src, results); err != nil {
		return fmt.Errorf("publish %d messages to %q: %w", len(msgs), topic, err)
	}
	for _, r := range results {
		if r.Status != outbox.Done {
			return publishError(src, results)
		}
	}
	return nil
}

func publishError(src watermillMessages, results []outbox.Result) *PublishError {
	e := &PublishError{Topic: src.to, Outcomes: make([]Outcome, len(results))}
	for i, r := range results {
		e.Outcomes[i] = Outcome{MessageID: src.id(i), Status: r.Status, Err: r.Err}
	}
	return e
}

// PublishBatch implements outbox.BatchPublisher: see there. A request carries at
// most one message of a key, so that many messages of few keys take as many
// round trips as the longest of them.
func (p *engine) PublishBatch(ctx context.Context, msgs []*outbox.Message, results []outbox.Result) {
	if err := p.publish(ctx, relayMessages(msgs), results); err != nil {
		for i := range results {
			results[i] = outbox.Result{Status: outbox.NotAttempted, Err: err}
		}
	}
}

// BatchContract implements outbox.BatchPublisher. A key stops at its first
// failure as long as all its messages are of one topic, as they are with
// outbox.DefaultTopic.
func (p *engine) BatchContract() outbox.BatchContract {
	return outbox.BatchContract{StopsKeyAtFirstFailure: true, MaxBatch: batchMessages, MaxBatchBytes: batchBytes}
}

func (p *engine) publish(ctx context.Context, src source, results []outbox.Result) error {
	if !p.enter() {
		return ErrClosed
	}
	defer p.calls.Done()
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()

	b := batch{of: p, src: src, results: results}
	b.sortOut(ctx)
	b.run(ctx)
	return nil
}

func (p *engine) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.calls.Add(1)
	return true
}

// start sends a request as soon as there is a slot for it, and reports to done,
// which never blocks.
func (p *engine) start(ctx context.Context, r *request, done chan<- *request) {
	p.calls.Add(1)
	go func() {
		defer p.calls.Done()
		select {
		case p.slots <- struct{}{}:
			r.do(ctx)
			<-p.slots
		case <-ctx.Done():
			r.results = make([]outbox.Result, len(r.entries))
			for k := range r.results {
				r.results[k] = r.unanswered(false, ctx.Err())
			}
		}
		done <- r
	}()
}

// lookUp finds the target of a topic, at the latest when ctx is done.
func (p *engine) lookUp(ctx context.Context, topic string) (*target, error) {
	name := p.targetName(topic)
	if fault := p.targets.of.nameFault(name); fault != "" {
		return nil, &nameError{fault}
	}
	type answer struct {
		t   *target
		err error
	}
	if t := p.targets.peek(name); t != nil {
		return t, nil
	}
	found := make(chan answer, 1)
	p.calls.Add(1)
	go func() {
		defer p.calls.Done()
		t, err := p.targets.get(ctx, name)
		found <- answer{t, err}
	}()
	select {
	case a := <-found:
		return a.t, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type nameError struct{ fault string }

func (e *nameError) Error() string { return e.fault }

// notFound is the result of a message whose target could not be looked up. Nothing
// of it was sent.
func (p *engine) notFound(topic, id string, err error) outbox.Result {
	if name := (*nameError)(nil); errors.As(err, &name) {
		return invalid(topic, id, name.fault)
	}
	r := request{of: p, end: &end{target: &target{name: p.targetName(topic)}}}
	if v, code, reply, answered := judgeCall(err); answered {
		if v.status == outbox.Unknown {
			v.status, v.wayOut = outbox.Passing, "the service is not well"
		}
		return refused(r.end.name, id, code, reply, v)
	}
	return r.unanswered(false, err)
}

// Close waits for the calls in flight, which their deadlines bound, and refuses
// new ones. The client stays yours. Close may be called more than once, and at
// any time.
func (p *engine) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()

	done := make(chan struct{})
	go func() {
		p.calls.Wait()
		close(done)
	}()
	patience := time.NewTimer(2 * p.timeout)
	defer patience.Stop()
	select {
	case <-done:
		return nil
	case <-patience.C:
		return fmt.Errorf("%w for requests that the client's HTTP transport has not ended: does it heed contexts?", ErrCloseTimeout)
	}
}
