package redisstream

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// closeGrace is what a handler gets after its context was cancelled, and an
// acknowledgement that Redis does not answer; never more than CloseTimeout.
const closeGrace = 2 * time.Second

func (s *subscription) grace() time.Duration { return min(closeGrace, s.of.cfg.CloseTimeout) }

// An outcome of handing an entry to a handler.
type handling int

const (
	acked handling = iota
	nacked
	notTaken // nobody took it before we were told to stop, or another consumer has it
	left     // the handler did not come back in time
)

// deliver has one entry handled, as often as it takes, and says whether it was:
// then it is to be acknowledged. While that lasts, the entry is kept fresh. One
// of several that may run at the same time, each with an entry of its own.
func (s *subscription) deliver(base, reading context.Context, e *entry) bool {
	fresh := time.NewTicker(s.of.cfg.MinIdle / 3)
	defer fresh.Stop()
	pauses := &backoff.ExponentialBackOff{InitialInterval: s.of.cfg.NackDelay, RandomizationFactor: 0.2,
		Multiplier: 2, MaxInterval: s.of.cfg.MaxNackDelay}
	for !e.lost {
		switch s.handOver(base, reading, e, fresh.C) {
		case acked:
			return true
		case nacked:
			if e.lost {
				return false
			}
			if !s.pause(base, reading, e, fresh.C, pauses.NextBackOff()) {
				s.release(base, e)
				return false
			}
			e.deliveries++
			s.keep(base, e, e.deliveries)
		case notTaken:
			s.release(base, e)
			return false
		case left:
			s.of.abandoned.Add(1)
			s.log.Warn("a handler has not come back in time to close; the entry stays pending and is delivered again", "entry", e.id)
			return false
		}
	}
	return false
}

// handOver gives the entry to whoever reads the channel, and waits for the answer.
func (s *subscription) handOver(base, reading context.Context, e *entry, fresh <-chan time.Time) handling {
	ctx, cancel := context.WithCancelCause(base)
	defer cancel(nil)
	msg := s.message(e)
	msg.SetContext(ctx)

	for taken := false; !taken; {
		select {
		case s.out <- msg:
			taken = true
		case <-fresh:
			if s.keep(base, e, nil); e.lost {
				return notTaken
			}
		case <-reading.Done():
			return notTaken
		}
	}

	stopping, patience := reading.Done(), time.Duration(0)
	deadline := time.NewTimer(time.Hour)
	deadline.Stop() // until we are told to stop
	defer deadline.Stop()
	for {
		select {
		case <-msg.Acked():
			return acked
		case <-msg.Nacked():
			return nacked
		case <-fresh:
			if s.keep(base, e, nil); e.lost {
				cancel(ErrLost)
			}
		case <-stopping:
			stopping, patience = nil, s.of.cfg.CloseTimeout
			deadline.Reset(patience)
		case <-deadline.C:
			if patience == 0 {
				return left
			}
			patience = 0
			cancel(ErrCloseTimeout)
			deadline.Reset(s.grace())
		}
	}
}

// pause waits before a nacked entry comes again, or is found to be lost; false
// if we are to stop first.
func (s *subscription) pause(base, reading context.Context, e *entry, fresh <-chan time.Time, d time.Duration) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	for {
		select {
		case <-over.C:
			return true
		case <-fresh:
			if s.keep(base, e, nil); e.lost {
				return true
			}
		case <-reading.Done():
			return false
		}
	}
}
