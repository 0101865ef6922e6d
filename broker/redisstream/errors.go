package redisstream

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postbus/postbus/outbox"
)

var (
	// ErrInvalidConfig marks every error of a constructor, and of Trim without a client: the
	// configuration has faults, all of them in the text, each with its field.
	ErrInvalidConfig = errors.New("the configuration cannot be used")

	// ErrClosed: Publish, PublishBatch or Subscribe was called after Close.
	ErrClosed = errors.New("redisstream: already closed; make a new one")

	// ErrCloseTimeout: Close gave up waiting for a handler, or for a connection
	// that does not answer. What was in flight stays pending in Redis and is
	// delivered again: nothing is lost.
	ErrCloseTimeout = errors.New("redisstream: close gave up waiting")

	// ErrLost is the cancel cause (context.Cause) of a message's context when
	// another consumer has claimed the entry, because this process could not
	// keep it fresh for longer than SubscriberConfig.MinIdle.
	ErrLost = errors.New("redisstream: another consumer has claimed this entry")
)

// PublishError says what became of every message of one Publish call.
// errors.Is finds outbox.ErrPermanent and outbox.ErrUnavailable in it.
type PublishError struct {
	Topic    string
	Outcomes []Outcome // one per message, in the order of the call
}

// Outcome is what became of one message.
type Outcome struct {
	MessageID string
	Status    outbox.Status
	Err       error // nil when Status is outbox.Done, and for messages that stood behind a failed one
}

func (e *PublishError) Error() string {
	var counts [outbox.Unknown + 1]int
	first := -1
	for i, o := range e.Outcomes {
		counts[o.Status]++
		if first < 0 && o.Err != nil {
			first = i
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "publish %d messages to stream %q:", len(e.Outcomes), e.Topic)
	for status, n := range counts {
		if n > 0 {
			fmt.Fprintf(&b, " %d %s,", n, outbox.Status(status))
		}
	}
	text := strings.TrimSuffix(b.String(), ",")
	if first >= 0 {
		text += fmt.Sprintf("; first message %s: %v", e.Outcomes[first].MessageID, e.Outcomes[first].Err)
	}
	return text
}

// Unwrap gives the errors of the messages, each once.
func (e *PublishError) Unwrap() []error {
	var errs []error
	for _, o := range e.Outcomes {
		if o.Err != nil && (len(errs) == 0 || errs[len(errs)-1] != o.Err) {
			errs = append(errs, o.Err)
		}
	}
	return errs
}

// RefusedError: Redis answered, and did not add the message. It wraps
// outbox.ErrUnavailable when the answer is about the server as a whole (out of
// memory, read-only, loading), outbox.ErrPermanent when the message will never
// be accepted on this stream as things stand (wrong type, no rights).
type RefusedError struct {
	Stream    string
	MessageID string
	Reply     string // the server's own words
	kind      error  // what Unwrap gives; nil for a refusal that may pass
	wayOut    string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("add message %s to stream %q: Redis answers %q; %s", e.MessageID, e.Stream, e.Reply, e.wayOut)
}

func (e *RefusedError) Unwrap() error { return e.kind }

// TooLargeError: the message was sorted out before anything was sent. It wraps
// outbox.ErrPermanent.
type TooLargeError struct {
	Stream    string
	MessageID string
	Bytes     int // payload plus names and values of its headers
	MaxBytes  int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("add message %s to stream %q: it has %d bytes, the limit is %d; publish less, or raise PublisherConfig.MaxMessageBytes",
		e.MessageID, e.Stream, e.Bytes, e.MaxBytes)
}

func (e *TooLargeError) Unwrap() error { return outbox.ErrPermanent }

// InvalidMessageError: the message cannot be written in the wire format at
// all. It wraps outbox.ErrPermanent.
type InvalidMessageError struct {
	Stream    string
	MessageID string
	Reason    string
}

func (e *InvalidMessageError) Error() string {
	return fmt.Sprintf("add message %s to stream %q: %s", e.MessageID, e.Stream, e.Reason)
}

func (e *InvalidMessageError) Unwrap() error { return outbox.ErrPermanent }

// CallError: no answer came for a call. If Sent, the messages may be in the
// stream (outbox.Unknown); else they certainly are not (outbox.Passing). It
// wraps outbox.ErrUnavailable, unless the caller cancelled.
type CallError struct {
	Stream string
	Sent   bool
	Err    error

	cancelled bool
}

func (e *CallError) Error() string {
	if e.Sent {
		return fmt.Sprintf("add to stream %q: sent, but no answer came: %v; the messages may be in the stream", e.Stream, e.Err)
	}
	return fmt.Sprintf("add to stream %q: nothing was sent: %v", e.Stream, e.Err)
}

func (e *CallError) Unwrap() []error {
	if e.cancelled {
		return []error{e.Err}
	}
	return []error{outbox.ErrUnavailable, e.Err}
}
