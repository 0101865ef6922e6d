package workload

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/outbox"
)

// Sink is a publisher that keeps nothing and counts. It serves a relay as a batch
// publisher and everybody else as a publisher of Watermill.
type Sink struct {
	// Delay is what one call takes, as a broker's round trip would.
	Delay time.Duration
	// Strict: keys go on behind a failure within a call, so that the relay puts one
	// event per key into a call.
	Strict bool
	// Each is called for each message of a batch, if set.
	Each func(m *outbox.Message)

	count atomic.Int64
	goal  int64
	done  chan struct{}
	marks []mark
}

// mark is the time at which so many had arrived.
type mark struct {
	at   int64
	time atomic.Int64 // since 1970, in nanoseconds
}

// NewSink gives a sink that is done after goal messages.
func NewSink(goal int) *Sink { return &Sink{goal: int64(goal), done: make(chan struct{})} }

// Mark has the sink note the time when the n-th message arrives. Before use.
func (s *Sink) Mark(n int) { s.marks = append(s.marks, mark{at: int64(n)}) }

// Marked is the time of Mark(n), n as given there.
func (s *Sink) Marked(n int) time.Time {
	for i := range s.marks {
		if s.marks[i].at == int64(n) {
			return time.Unix(0, s.marks[i].time.Load())
		}
	}
	return time.Time{}
}

// Done is closed when the goal is reached.
func (s *Sink) Done() <-chan struct{} { return s.done }

// Count is how many messages have arrived.
func (s *Sink) Count() int { return int(s.count.Load()) }

// Arrive counts n messages.
func (s *Sink) Arrive(n int) {
	now := s.count.Add(int64(n))
	for i := range s.marks {
		if m := &s.marks[i]; now >= m.at && now-int64(n) < m.at {
			m.time.Store(time.Now().UnixNano())
		}
	}
	if now >= s.goal && now-int64(n) < s.goal {
		close(s.done)
	}
}

// Publish takes messages as Watermill's publishers do.
func (s *Sink) Publish(_ string, msgs ...*message.Message) error {
	if s.Delay > 0 {
		time.Sleep(s.Delay)
	}
	s.Arrive(len(msgs))
	return nil
}

// Close does nothing.
func (s *Sink) Close() error { return nil }

// Batches makes a batch publisher of the sink.
func (s *Sink) Batches() message.Publisher { return batches{s} }

// Publisher of Watermill and batch publisher in one, as the adapters are.
type batches struct{ *Sink }

func (b batches) PublishBatch(_ context.Context, msgs []*outbox.Message, results []outbox.Result) {
	if b.Delay > 0 {
		time.Sleep(b.Delay)
	}
	for i := range results {
		results[i].Status = outbox.Done
	}
	if b.Each != nil {
		for _, m := range msgs {
			b.Each(m)
		}
	}
	b.Arrive(len(msgs))
}

func (b batches) BatchContract() outbox.BatchContract {
	return outbox.BatchContract{StopsKeyAtFirstFailure: !b.Strict}
}
