package events

import (
	"cmp"
	"time"

	"github.com/google/uuid"
)

// An Option changes the envelope of one publication. See [With]. One that is
// given an empty value is a mistake that New refuses, with an
// *[InvalidEventError]: an unset variable must not silently mean the default.
type Option struct {
	field string
	fault string             // why the option is refused, "" if it is not
	apply func(*DomainEvent) // nil for the zero Option, which does nothing
}

func option(field string, empty bool, apply func(*DomainEvent)) Option {
	o := Option{field: field, apply: apply}
	if empty {
		o.fault = "was set to nothing by an option of events.With: give it a value, or leave the option out"
	}
	return o
}

// PartitionKey orders and routes the event by key instead of its aggregate id.
func PartitionKey(key string) Option {
	return option("partition_key", key == "", func(e *DomainEvent) { e.PartitionKey = key })
}

// IdempotentBy sets the idempotency key. See [IdempotencyKey] for one way to make it.
func IdempotentBy(key string) Option {
	return option("idempotency_key", key == "", func(e *DomainEvent) { e.IdempotencyKey = key })
}

// Metadata adds an entry to the metadata, or replaces it. An empty value is allowed.
func Metadata(key, value string) Option {
	return option("metadata", key == "", func(e *DomainEvent) {
		if e.Metadata == nil {
			e.Metadata = make(map[string]string)
		}
		e.Metadata[key] = value
	})
}

// ID sets the event id, for a caller that has to repeat a transaction whose
// outcome it does not know and wants the same event again.
func ID(id uuid.UUID) Option {
	return option("event_id", id == uuid.Nil, func(e *DomainEvent) { e.EventID = id })
}

// At sets the time at which it happened.
func At(t time.Time) Option {
	return option("timestamp", t.IsZero(), func(e *DomainEvent) { e.Timestamp = t })
}

// CorrelatedWith sets the correlation id, whatever the context says.
func CorrelatedWith(id string) Option {
	return option("correlation_id", id == "", func(e *DomainEvent) { e.CorrelationID = id })
}

// With is p with options for this one publication. It can be applied to what
// With and [Raw] return; where two options set the same field, the later or
// outer one holds.
func With(p Payload, opts ...Option) Payload { return with{Payload: p, opts: opts} }

type with struct {
	Payload
	opts []Option
}

// Raw makes an envelope that was built by hand, or decoded, a payload. New
// fills in only what is missing: id, time, schema version 1, correlation and
// causation. Its data has to be one JSON value already, and is not copied.
func Raw(e DomainEvent) Payload { return raw{e} }

type raw struct{ e DomainEvent }

func (r raw) EventType() string   { return r.e.EventType }
func (r raw) SchemaVersion() int  { return cmp.Or(r.e.SchemaVersion, 1) }
func (r raw) AggregateID() string { return r.e.AggregateID }

// Unwrap takes p out of all the With around it. It is for those who dispatch on
// the payload's Go type. What [Raw] made stays as it is, and has no Go type of
// its own: its data has to be decoded, by [Typed].
func Unwrap(p Payload) Payload {
	for {
		w, ok := p.(with)
		if !ok {
			return p
		}
		p = w.Payload
	}
}
