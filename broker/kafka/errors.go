package kafka

import (
	"errors"
	"fmt"
	"strings"

	"github.com/postbus/postbus/outbox"
)

var (
	// ErrInvalidConfig marks every error of a constructor: the configuration has
	// faults, all of them in the text, each with its field.
	ErrInvalidConfig = errors.New("the configuration cannot be used")

	// ErrClosed: Publish, PublishBatch, Subscribe or Lag was called after Close.
	ErrClosed = errors.New("kafka: already closed; make a new one")

	// ErrCloseTimeout: Close gave up waiting for a handler, or for a broker that
	// does not answer. What was in flight is not committed, and delivered again:
	// nothing is lost.
	ErrCloseTimeout = errors.New("kafka: close gave up waiting")

	// ErrRevoked is the cancel cause (context.Cause) of a message's context when
	// its partition belongs to another consumer of the group now.
	ErrRevoked = errors.New("kafka: the partition belongs to another consumer now")
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
	fmt.Fprintf(&b, "publish %d messages to topic %q:", len(e.Outcomes), e.Topic)
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

// RefusedError: Kafka answered, and did not add the message. It wraps
// outbox.ErrUnavailable when the answer is about the cluster or a partition and
// not about the message (no leader, too few replicas), outbox.ErrPermanent when
// the message will never be accepted on this topic as things stand, and Kafka's
// answer, a *kerr.Error of franz-go.
type RefusedError struct {
	Topic     string
	MessageID string
	Err       error
	kind      error // nil for a refusal that may pass
	wayOut    string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("add message %s to topic %q: Kafka answers %v; %s", e.MessageID, e.Topic, e.Err, e.wayOut)
}

func (e *RefusedError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.Err}
	}
	return []error{e.kind, e.Err}
}

// TooLargeError: the message, alone in a batch, is over the topic's
// max.message.bytes. It was not added, and wraps outbox.ErrPermanent.
type TooLargeError struct {
	Topic     string
	MessageID string
	Bytes     int // of a batch with this record alone, before compression
	MaxBytes  int // the topic's max.message.bytes, or what the options or PublisherConfig.MaxMessageBytes allow, if that is less
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("add message %s to topic %q: it takes %d bytes, the limit is %d; publish less, or raise the topic's max.message.bytes",
		e.MessageID, e.Topic, e.Bytes, e.MaxBytes)
}

func (e *TooLargeError) Unwrap() error { return outbox.ErrPermanent }

// InvalidMessageError: the message cannot be written at all. It wraps
// outbox.ErrPermanent.
type InvalidMessageError struct {
	Topic     string
	MessageID string
	Reason    string
}

func (e *InvalidMessageError) Error() string {
	return fmt.Sprintf("add message %s to topic %q: %s", e.MessageID, e.Topic, e.Reason)
}

func (e *InvalidMessageError) Unwrap() error { return outbox.ErrPermanent }

// CallError: no answer came for messages. If Sent, they may be in the topic
// (outbox.Unknown); else they certainly are not. It wraps
// outbox.ErrUnavailable, unless the caller cancelled.
type CallError struct {
	Topic string
	Sent  bool
	Err   error

	cancelled bool
}

func (e *CallError) Error() string {
	if e.Sent {
		return fmt.Sprintf("add to topic %q: sent, but no answer came: %v; the messages may be in the topic", e.Topic, e.Err)
	}
	return fmt.Sprintf("add to topic %q: nothing was sent: %v", e.Topic, e.Err)
}

func (e *CallError) Unwrap() []error {
	if e.cancelled {
		return []error{e.Err}
	}
	return []error{outbox.ErrUnavailable, e.Err}
}
