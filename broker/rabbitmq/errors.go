package rabbitmq

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

	// ErrClosed: Publish, PublishBatch or Subscribe was called after Close.
	ErrClosed = errors.New("rabbitmq: already closed; make a new one")

	// ErrCloseTimeout: Close gave up waiting for a handler, or for a server that
	// does not answer. What was in flight is delivered again: nothing is lost.
	ErrCloseTimeout = errors.New("rabbitmq: close gave up waiting")

	// ErrLost is the cancel cause (context.Cause) of a message's context when the
	// server has taken the delivery back: the connection or the channel broke, or
	// the handler took longer than the server's consumer_timeout. It is delivered
	// again, perhaps elsewhere and at once.
	ErrLost = errors.New("rabbitmq: the server has taken this delivery back")

	// ErrUnroutable: the exchange has no queue for the message. RabbitMQ has
	// returned it (mandatory) and nobody has it.
	ErrUnroutable = errors.New("no queue is bound for this message")

	// ErrNacked: RabbitMQ has taken the message and refused it (basic.nack): a queue
	// behind the exchange is full and has overflow reject-publish, or has failed.
	ErrNacked = errors.New("a queue has refused the message")

	// ErrMissing: an exchange or queue does not exist, and creating it is off.
	ErrMissing = errors.New("it does not exist")

	// ErrMismatch: an exchange or queue exists with other properties than the
	// topology gives it.
	ErrMismatch = errors.New("it exists with other properties")
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

// RefusedError: RabbitMQ answered, and does not have the message. It wraps what
// is wrong (ErrUnroutable, ErrNacked, ErrMissing, or the server's reply) and,
// unless it may pass, outbox.ErrPermanent.
type RefusedError struct {
	Exchange   string // "" is the default exchange
	RoutingKey string
	MessageID  string
	Reason     error

	permanent bool
	wayOut    string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("publish message %s to %s with routing key %q: %v; %s",
		e.MessageID, exchangeText(e.Exchange), e.RoutingKey, e.Reason, e.wayOut)
}

func (e *RefusedError) Unwrap() []error {
	if e.permanent {
		return []error{outbox.ErrPermanent, e.Reason}
	}
	return []error{e.Reason}
}

// TooLargeError: the message was sorted out before anything was sent. It wraps
// outbox.ErrPermanent.
type TooLargeError struct {
	Exchange  string
	MessageID string
	Bytes     int // payload plus names and values of its headers
	MaxBytes  int
	Headers   bool // the headers alone are too large: AMQP has them in one frame
}

func (e *TooLargeError) Error() string {
	if e.Headers {
		return fmt.Sprintf("publish message %s to %s: its headers have %d bytes, the connection takes %d in one frame; carry less in headers",
			e.MessageID, exchangeText(e.Exchange), e.Bytes, e.MaxBytes)
	}
	return fmt.Sprintf("publish message %s to %s: it has %d bytes, the limit is %d; publish less, or raise PublisherConfig.MaxMessageBytes and the server's max_message_size",
		e.MessageID, exchangeText(e.Exchange), e.Bytes, e.MaxBytes)
}

func (e *TooLargeError) Unwrap() error { return outbox.ErrPermanent }

// InvalidMessageError: the message cannot be written in AMQP at all. It wraps
// outbox.ErrPermanent.
type InvalidMessageError struct {
	Exchange  string
	MessageID string
	Reason    string
}

func (e *InvalidMessageError) Error() string {
	return fmt.Sprintf("publish message %q to %s: %s", e.MessageID, exchangeText(e.Exchange), e.Reason)
}

func (e *InvalidMessageError) Unwrap() error { return outbox.ErrPermanent }

// CallError: no answer came for a message. If Sent, it may have been taken
// (outbox.Unknown); else it certainly was not. It wraps outbox.ErrUnavailable,
// unless the caller cancelled or only the channel broke, by another message.
type CallError struct {
	Exchange string
	Sent     bool
	Err      error

	passing bool // says nothing about the server
}

func (e *CallError) Error() string {
	if e.Sent {
		return fmt.Sprintf("publish to %s: sent, but no confirmation came: %v; the message may have been taken", exchangeText(e.Exchange), e.Err)
	}
	return fmt.Sprintf("publish to %s: it was not sent: %v", exchangeText(e.Exchange), e.Err)
}

func (e *CallError) Unwrap() []error {
	if e.passing {
		return []error{e.Err}
	}
	return []error{outbox.ErrUnavailable, e.Err}
}

func exchangeText(name string) string {
	if name == "" {
		return "the default exchange"
	}
	return fmt.Sprintf("exchange %q", name)
}
