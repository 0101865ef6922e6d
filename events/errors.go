package events

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

var (
	// ErrInvalidEvent is wrapped by every error with which this package refuses
	// an event or a document. Trying again cannot help.
	ErrInvalidEvent = errors.New("events: invalid event")

	// ErrTooLarge is wrapped by a *TooLargeError, next to ErrInvalidEvent.
	ErrTooLarge = errors.New("events: event too large")

	// ErrMismatch is wrapped by a *MismatchError: the event is sound, but it is
	// not one of the Go type that was asked for.
	ErrMismatch = errors.New("events: event does not match the Go type")
)

// InvalidEventError says which field of which event is refused, and why. It
// wraps ErrInvalidEvent, and Err where there is a cause. Its text holds no data
// of the event but its type, its id and the names of metadata keys.
type InvalidEventError struct {
	Op        string    // what was attempted: "build", "validate", "encode", "decode" or "decode the data of"
	EventType string    // empty when not known (yet)
	EventID   uuid.UUID // zero when not known (yet)
	Field     string    // the member of the document, "partition_key", or "document" for the whole
	Reason    string    // what is wrong with Field, and the way out
	Err       error     // the cause, or nil
}

// Error is one sentence: attempt, event, field, fault, way out.
func (e *InvalidEventError) Error() string {
	return "events: cannot " + e.Op + " " + name(e.EventType, e.EventID) + ": " + e.Field + " " + e.Reason
}

// Unwrap gives ErrInvalidEvent and the cause.
func (e *InvalidEventError) Unwrap() []error { return causes(e.Err, ErrInvalidEvent) }

// TooLargeError is the answer to a document over a limit. It wraps ErrTooLarge
// and ErrInvalidEvent.
type TooLargeError struct {
	EventType string    // empty when not known
	EventID   uuid.UUID // zero when not known
	Size      int       // bytes of the document; a lower bound where it was not worth encoding
	Limit     int       // bytes allowed
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("events: %s takes %d bytes and the limit is %d: keep the bulk elsewhere and publish a reference to it",
		name(e.EventType, e.EventID), e.Size, e.Limit)
}

// Unwrap gives ErrTooLarge and ErrInvalidEvent.
func (e *TooLargeError) Unwrap() []error { return []error{ErrTooLarge, ErrInvalidEvent} }

// PayloadError says that New could make no event of a payload: it is nil, one of
// its methods panicked, or it could not be encoded. It wraps ErrInvalidEvent,
// and Err where there is a cause.
type PayloadError struct {
	GoType string // the payload's Go type, "nil" for no payload at all
	Reason string // what is wrong, and the way out
	Err    error  // what encoding/json or a panic said, or nil
	Stack  []byte // where a method panicked, or nil
}

func (e *PayloadError) Error() string {
	return "events: cannot build an event from a payload of type " + e.GoType + ": " + e.Reason
}

// Unwrap gives ErrInvalidEvent and the cause.
func (e *PayloadError) Unwrap() []error { return causes(e.Err, ErrInvalidEvent) }

// MismatchError is Typed's answer to an event of another type or schema version
// than T. It wraps ErrMismatch. A HaveVersion above WantVersion comes from a
// newer program; one below needs upcasting first.
type MismatchError struct {
	GoType      string // the Go type asked for
	EventID     uuid.UUID
	HaveType    string // the event's
	WantType    string // the Go type's
	HaveVersion int
	WantVersion int
}

func (e *MismatchError) Error() string {
	have := name(e.HaveType, e.EventID)
	switch {
	case e.HaveType != e.WantType:
		return fmt.Sprintf("events: cannot read %s as a %s, whose event type is %s: subscribe with the Go type of that event type",
			have, e.GoType, clip(e.WantType))
	case e.HaveVersion > e.WantVersion:
		return fmt.Sprintf("events: cannot read %s of schema version %d as a %s, which is version %d: a newer program wrote it; deploy the new version here too",
			have, e.HaveVersion, e.GoType, e.WantVersion)
	default:
		return fmt.Sprintf("events: cannot read %s of schema version %d as a %s, which is version %d: upcast the event first",
			have, e.HaveVersion, e.GoType, e.WantVersion)
	}
}

// Unwrap gives ErrMismatch.
func (e *MismatchError) Unwrap() error { return ErrMismatch }

func causes(cause, sentinel error) []error {
	if cause == nil {
		return []error{sentinel}
	}
	return []error{sentinel, cause}
}

// name is how errors and logs call an event: by type and id, as far as known.
func name(eventType string, id uuid.UUID) string {
	var b strings.Builder
	b.WriteString("event")
	if eventType != "" {
		b.WriteByte(' ')
		b.WriteString(clip(eventType))
	}
	if id != uuid.Nil {
		b.WriteByte(' ')
		b.WriteString(id.String())
	}
	if b.Len() == len("event") {
		return "an event of unknown type and id"
	}
	return b.String()
}

// clip makes a name from outside safe for one line of a log: short, and quoted
// where it is not plain.
func clip(s string) string { return clipTo(64, s) }

// clipCause does so for what an error or a panic said. It survives a value whose
// Error method panics, as fmt does.
func clipCause(v any) string { return clipTo(300, fmt.Sprint(v)) }

func clipTo(most int, s string) string {
	short := s
	if len(s) > most {
		cut := most
		for cut > most-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
			cut--
		}
		short = s[:cut] + "…"
	}
	for _, c := range short {
		if c <= ' ' || c == '"' || c == '\\' || c == utf8.RuneError || !strconv.IsPrint(c) {
			return strconv.Quote(short)
		}
	}
	return short
}
