package outbox

import (
	"context"
	"errors"
	"fmt"
)

// Status is what became of one message of a batch.
type Status uint8

const (
	// NotAttempted: the message was never sent (it stood behind a failed one of its
	// key, or the call ended before its turn). Safe to send again; no attempt is counted.
	NotAttempted Status = iota
	// Done: the broker has accepted the message as durably as it is configured to.
	Done
	// Passing: refused for now; trying again may work.
	Passing
	// Permanent: never will be accepted as it is (too large, refused by policy).
	Permanent
	// Unknown: it may have been accepted (a deadline passed, a connection broke after
	// sending). It is sent again before anything else of its key.
	Unknown
)

func (s Status) String() string {
	switch s {
	case NotAttempted:
		return "not attempted"
	case Done:
		return "done"
	case Passing:
		return "passing"
	case Permanent:
		return "permanent"
	case Unknown:
		return "unknown"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Result is the outcome of one message of a batch. Err is set for every status
// but Done and, optionally, NotAttempted.
type Result struct {
	Status Status
	Err    error
}

// BatchPublisher is what a broker adapter offers besides Watermill's
// message.Publisher. A relay prefers it: one call carries many messages and
// answers for each of them.
type BatchPublisher interface {
	// PublishBatch sends msgs, in the given order for each key, and sets
	// results[i] for msgs[i] (len(results) == len(msgs), all NotAttempted at entry).
	// It returns when every result is known, at the latest when ctx is done: what
	// had been sent by then and is unanswered is Unknown. It neither retries beyond
	// ctx nor keeps msgs or results after it has returned. The relay calls it from
	// several goroutines at once, never with the same key in two calls at a time, save for a call that
	// was left behind because it did not return in time.
	PublishBatch(ctx context.Context, msgs []*Message, results []Result)

	// BatchContract says what the relay may rely on. It is asked once, at construction.
	BatchContract() BatchContract
}

// BatchContract is what a BatchPublisher promises about one call.
type BatchContract struct {
	// StopsKeyAtFirstFailure: after the first message of a key that is not Done, no
	// later message of that key in the same call reaches the broker. Where this is
	// false the relay puts at most one message per key into a call.
	StopsKeyAtFirstFailure bool
	// MaxBatch bounds the messages of one call. Zero means the relay's own bound.
	MaxBatch int
	// MaxBatchBytes bounds the payload bytes of one call. Zero means the relay's own bound.
	MaxBatchBytes int
}

var (
	// ErrUnavailable marks an error (wrap it) as "the broker as a whole cannot be
	// reached". Such a failure says nothing about the event: no attempt is counted
	// and nothing is parked; the relay stops, probes and resumes.
	ErrUnavailable = errors.New("the broker cannot be reached")

	// ErrPermanent marks an error (wrap it) of a publisher without a batch call as
	// permanent: the event will never be accepted as it is.
	ErrPermanent = errors.New("the broker will never accept this event")
)
