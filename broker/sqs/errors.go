package sqs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postbus/postbus/outbox"
)

var (
	// ErrInvalidConfig marks every error of a constructor, and of a Topology that
	// cannot be declared: the text has all faults, each with its field.
	ErrInvalidConfig = errors.New("the configuration cannot be used")

	// ErrClosed: Publish, PublishBatch or Subscribe was called after Close.
	ErrClosed = errors.New("sqs: already closed; make a new one")

	// ErrCloseTimeout: Close gave up waiting for a handler, or for a connection that
	// does not answer. What was in flight is delivered again: nothing is lost.
	ErrCloseTimeout = errors.New("sqs: close gave up waiting")

	// ErrLost is the cancel cause (context.Cause) of a message's context when it
	// could not be kept invisible: another consumer may have it.
	ErrLost = errors.New("sqs: the message could not be kept invisible, another consumer may have it")

	// ErrHandlerLimit is the cancel cause of a message's context when its handler has
	// taken longer than SubscriberConfig.HandlerLimit.
	ErrHandlerLimit = errors.New("sqs: the handler has taken longer than SubscriberConfig.HandlerLimit")

	// ErrNoQueue: the queue or topic does not exist, or not for this account in this
	// region. It is in the errors of publishing, subscribing and Topology.
	ErrNoQueue = errors.New("it does not exist")

	// ErrDiffers: a queue or topic exists, and is not as the Topology says.
	ErrDiffers = errors.New("it exists with other attributes")
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
	fmt.Fprintf(&b, "publish %d messages to %q:", len(e.Outcomes), e.Topic)
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

// RefusedError: AWS answered, and did not accept the message. It wraps
// outbox.ErrUnavailable when the answer is about the service, the credentials or
// the pace, outbox.ErrPermanent when the message will never be accepted there as
// things stand (no such queue, no rights, not allowed in its form).
type RefusedError struct {
	Target    string // the queue or topic
	MessageID string // empty when the answer is about the queue or topic itself
	Code      string // the service's error code
	Reply     string // the service's own words

	kinds  []error
	wayOut string
}

func (e *RefusedError) Error() string {
	what := "look up"
	if e.MessageID != "" {
		what = "send message " + e.MessageID + " to"
	}
	reply := e.Code
	if e.Reply != "" {
		reply += ": " + e.Reply
	}
	text := fmt.Sprintf("%s %q: AWS answers %q", what, e.Target, reply)
	for _, kind := range e.kinds {
		if kind == ErrNoQueue {
			text += ", " + kind.Error()
		}
	}
	return text + "; " + e.wayOut
}

func (e *RefusedError) Unwrap() []error { return e.kinds }

// TooLargeError: the message was sorted out before it was sent. It wraps
// outbox.ErrPermanent.
type TooLargeError struct {
	Target    string
	MessageID string
	Bytes     int // body plus names, types and values of the attributes
	MaxBytes  int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("send message %s to %q: it has %d bytes, the limit is %d; publish less, "+
		"or raise MaximumMessageSize of the queue or topic (1,048,576 at most) and MaxMessageBytes of the publisher's config",
		e.MessageID, e.Target, e.Bytes, e.MaxBytes)
}

func (e *TooLargeError) Unwrap() error { return outbox.ErrPermanent }

// InvalidMessageError: the message cannot be written in the wire format at
// all, or not to that queue. It wraps outbox.ErrPermanent.
type InvalidMessageError struct {
	Target    string
	MessageID string
	Reason    string
}

func (e *InvalidMessageError) Error() string {
	return fmt.Sprintf("send message %s to %q: %s", e.MessageID, e.Target, e.Reason)
}

func (e *InvalidMessageError) Unwrap() error { return outbox.ErrPermanent }

// CallError: no usable answer came for a request. If Sent, its messages may have
// been accepted (outbox.Unknown); else they certainly were not
// (outbox.Passing). It wraps outbox.ErrUnavailable, unless the caller cancelled.
type CallError struct {
	Target string
	Sent   bool
	Err    error

	cancelled bool
}

func (e *CallError) Error() string {
	if e.Sent {
		return fmt.Sprintf("send to %q: sent, but no answer came: %v; the messages may have been accepted", e.Target, e.Err)
	}
	return fmt.Sprintf("send to %q: nothing was sent: %v", e.Target, e.Err)
}

func (e *CallError) Unwrap() []error {
	if e.cancelled {
		return []error{e.Err}
	}
	return []error{outbox.ErrUnavailable, e.Err}
}
