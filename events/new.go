package events

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
)

// New builds the envelope of p and encodes its data, once: what comes back
// passes Validate and is ready to be appended.
//
//   - EventID is fresh (see [NewID]), Timestamp is now, in UTC.
//   - CorrelationID and CausationID come from ctx (see [ContextHandling]). A root
//     event, with nothing in ctx, is correlated with its own EventID.
//   - Data is what encoding/json makes of p, with <, > and & left as they are:
//     the document is no HTML, and a nested json.RawMessage keeps its bytes.
//   - Options of [With] are applied, and of [Raw] only gaps are filled.
//
// It returns a *[PayloadError] where p is nil, a nil pointer (also inside With),
// panics, or cannot be encoded, an *[InvalidEventError] where p says something
// of itself that no event may, and a *[TooLargeError] over HardMaxDocumentBytes.
// All of them wrap ErrInvalidEvent. It never panics. p is not kept.
func New(ctx context.Context, p Payload) (DomainEvent, error) { return process.build(ctx, p) }

func (s *source) build(ctx context.Context, p Payload) (DomainEvent, error) {
	var e DomainEvent
	inner, err := open(&e, p)
	if err != nil {
		return DomainEvent{}, err
	}
	if _, isRaw := inner.(raw); !isRaw {
		if err := read(&e, inner); err != nil {
			return DomainEvent{}, err
		}
	}
	s.complete(ctx, &e)
	if err := e.check("build"); err != nil {
		return DomainEvent{}, err
	}
	if err := e.checkKeyed("build"); err != nil {
		return DomainEvent{}, err
	}
	return e, nil
}

// open unwraps p, filling e from the innermost envelope outwards.
func open(e *DomainEvent, p Payload) (Payload, error) {
	switch p := p.(type) {
	case nil:
		return nil, &PayloadError{GoType: "nil", Reason: "there is none: pass a value that implements events.Payload"}
	case raw:
		*e = p.e
		e.Metadata = maps.Clone(e.Metadata) // options write to it
		e.SchemaVersion = p.SchemaVersion()
		return p, nil
	case with:
		inner, err := open(e, p.Payload)
		if err != nil {
			return nil, err
		}
		draft := *e // what options get is on the heap; events without options stay off it
		for _, o := range p.opts {
			if o.fault != "" {
				draft.EventType, _, _, _ = describe(inner)
				return nil, draft.refuse("build", o.field, o.fault)
			}
			if o.apply != nil {
				o.apply(&draft)
			}
		}
		*e = draft
		return inner, nil
	default:
		if v := reflect.ValueOf(p); v.Kind() == reflect.Pointer && v.IsNil() {
			return nil, &PayloadError{GoType: v.Type().String(), Reason: "it is a nil pointer: check for nil before publishing"}
		}
		return p, nil
	}
}

// read takes from the payload what it says of itself, and its data.
func read(e *DomainEvent, p Payload) (err error) {
	if e.EventType, e.SchemaVersion, e.AggregateID, err = describe(p); err != nil {
		return err
	}
	e.Data, err = marshal(p)
	return err
}

// describe asks p about itself. A method may panic although p is no nil pointer:
// a struct that embeds one promotes its methods.
func describe(p Payload) (eventType string, version int, aggregate string, err error) {
	defer recovered(p, &err)
	return p.EventType(), p.SchemaVersion(), p.AggregateID(), nil
}

// recovered turns a panic of one of p's methods into an error.
func recovered(p Payload, err *error) {
	v := recover()
	if v == nil {
		return
	}
	cause, ok := v.(error)
	if !ok {
		cause = fmt.Errorf("%v", v)
	}
	*err = &PayloadError{
		GoType: fmt.Sprintf("%T", p),
		Reason: "one of its methods panicked: " + clipCause(v) + ": make EventType, SchemaVersion, AggregateID and MarshalJSON work for every value",
		Err:    cause,
		Stack:  debug.Stack(),
	}
}

// complete fills the gaps that a payload leaves.
func (s *source) complete(ctx context.Context, e *DomainEvent) {
	id, now := s.next()
	if e.EventID == uuid.Nil {
		e.EventID = id
	}
	if e.Timestamp.IsZero() {
		e.Timestamp = time.Unix(0, now)
	}
	// Round strips the monotonic clock, so that == holds after a round trip.
	e.Timestamp = e.Timestamp.Round(0).UTC()

	c := chainOf(ctx)
	if e.CausationID == "" && c.causation != uuid.Nil && c.causation != e.EventID {
		e.CausationID = c.causation.String()
	}
	if e.CorrelationID == "" {
		e.CorrelationID = c.correlation
	}
	if e.CorrelationID == "" {
		e.CorrelationID = e.EventID.String()
	}
}

// encoder is a json.Encoder with its buffer, shared by events one after another.
type encoder struct {
	buf  bytes.Buffer
	json *json.Encoder
}

var encoders = sync.Pool{New: func() any {
	e := new(encoder)
	e.json = json.NewEncoder(&e.buf)
	e.json.SetEscapeHTML(false)
	return e
}}

// marshal is the one encoding of an event's data.
func marshal(p Payload) (data json.RawMessage, err error) {
	defer recovered(p, &err) // of MarshalJSON; the encoder is not used again then
	e := encoders.Get().(*encoder)
	e.buf.Reset()
	if err := e.json.Encode(p); err != nil {
		encoders.Put(e)
		return nil, &PayloadError{
			GoType: fmt.Sprintf("%T", p),
			Reason: "encoding/json refuses it (" + clipCause(err) + "): give it fields that JSON can hold, or a MarshalJSON method",
			Err:    err,
		}
	}
	written := bytes.TrimSuffix(e.buf.Bytes(), []byte("\n")) // of json.Encoder
	data = append(make(json.RawMessage, 0, len(written)), written...)
	const keep = 64 << 10 // one huge event must not pin its buffer
	if e.buf.Cap() <= keep {
		encoders.Put(e)
	}
	if rewritten(data) {
		return nil, &PayloadError{
			GoType: fmt.Sprintf("%T", p),
			Reason: "one of its strings is not UTF-8, and encoding/json would publish it with U+FFFD in place of some bytes: clean it by strings.ToValidUTF8, or make it a []byte",
		}
	}
	return data, nil
}

// rewritten tells whether encoding/json has put U+FFFD in place of bytes that
// are not UTF-8. It writes those as an escape, and an honest U+FFFD as itself.
func rewritten(data []byte) bool {
	escape := []byte(`\ufffd`)
	for from := 0; ; {
		i := bytes.Index(data[from:], escape)
		if i < 0 {
			return false
		}
		at := from + i
		slashes := 0
		for at-slashes > 0 && data[at-slashes-1] == '\\' {
			slashes++
		}
		if slashes%2 == 0 { // else the backslash found is itself escaped
			return true
		}
		from = at + len(escape)
	}
}
