package outbox

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// sender hands messages to the user's publisher and always answers in time: a
// call that does not come back by its deadline is left behind, its messages
// Unknown.
type sender struct {
	call      func(ctx context.Context, msgs []*Message, results []Result)
	contract  BatchContract
	abandoned atomic.Int64 // calls left behind that have not come back
	limit     int64        // of those; more, and callers wait
}

// crowded: as many calls are left behind as may be. What hangs is then not sent
// again before it has come back, so that it does not make its lane wait.
func (s *sender) crowded() bool { return s.abandoned.Load() >= s.limit }

// grace is what a publisher that honours its context gets to come back in.
const grace = 250 * time.Millisecond

// newSender prefers the batch call; a publisher without one gets a message at a time.
func newSender(p message.Publisher, maxBatch, maxBytes, limit int) *sender {
	s := &sender{limit: int64(limit)}
	if b, ok := p.(BatchPublisher); ok {
		s.call, s.contract = b.PublishBatch, b.BatchContract()
	} else {
		s.call = func(ctx context.Context, msgs []*Message, results []Result) {
			w := msgs[0].Watermill()
			w.SetContext(ctx) // the only way a stock publisher hears of the deadline
			results[0] = resultOf(p.Publish(msgs[0].Topic, w))
		}
		s.contract.MaxBatch = 1
	}
	if s.contract.MaxBatch == 0 || s.contract.MaxBatch > maxBatch {
		s.contract.MaxBatch = maxBatch
	}
	if s.contract.MaxBatchBytes == 0 || s.contract.MaxBatchBytes > maxBytes {
		s.contract.MaxBatchBytes = maxBytes
	}
	return s
}

// resultOf classifies the error of a publisher that only has errors. Whether a
// message was accepted in spite of one cannot be known, so it is tried again.
func resultOf(err error) Result {
	switch {
	case err == nil:
		return Result{Status: Done}
	case errors.Is(err, ErrPermanent):
		return Result{Permanent, err}
	default:
		return Result{Passing, err}
	}
}

// caller is one lane's way to the publisher: a goroutine that is replaced when a
// call hangs.
type caller struct {
	s    *sender
	jobs chan job
}

type job struct {
	ctx     context.Context
	msgs    []*Message
	results []Result
	done    chan struct{}
}

func (s *sender) newCaller() *caller {
	c := &caller{s: s, jobs: make(chan job)}
	go c.s.serve(c.jobs)
	return c
}

func (c *caller) close() { close(c.jobs) }

func (s *sender) serve(jobs <-chan job) {
	for j := range jobs {
		s.guarded(j)
		close(j.done)
	}
}

// guarded keeps a publisher's panic from taking the program down.
func (s *sender) guarded(j job) {
	defer func() {
		if p := recover(); p != nil {
			err := fmt.Errorf("the publisher panicked: %v\n%s", p, debug.Stack())
			for i := range j.results {
				if j.results[i].Status == NotAttempted {
					j.results[i] = Result{Passing, err}
				}
			}
		}
	}()
	s.call(j.ctx, j.msgs, j.results)
}

// send publishes msgs and gives their results, at the latest a moment after
// within has passed. If the call did not come back, left is not nil and closed when
// it does; until then msgs still belong to it.
func (c *caller) send(parent context.Context, within time.Duration, msgs []*Message) (results []Result, left <-chan struct{}) {
	ctx, cancel := context.WithTimeout(parent, within)
	defer cancel()
	j := job{ctx, msgs, make([]Result, len(msgs)), make(chan struct{})}
	c.jobs <- j
	select {
	case <-j.done:
		return j.results, nil
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case <-j.done:
		return j.results, nil
	case <-late.C:
	}
	if c.s.abandoned.Add(1) > c.s.limit {
		// Too many hang already: this lane waits for its own, or for the end.
		select {
		case <-j.done:
			c.s.abandoned.Add(-1)
			return j.results, nil
		case <-parent.Done():
		}
	}
	go func(old chan job) {
		close(old)
		<-j.done
		c.s.abandoned.Add(-1)
	}(c.jobs)
	c.jobs = make(chan job)
	go c.s.serve(c.jobs)
	results = make([]Result, len(msgs))
	for i := range results {
		results[i] = Result{Unknown, fmt.Errorf("the publisher did not come back within %s: %w", within.Round(time.Millisecond), context.DeadlineExceeded)}
	}
	return results, j.done
}
