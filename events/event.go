package events

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
)

// Payload is what a domain event must be able to say about itself. All three
// methods are required, so that a misspelt one does not compile instead of
// silently costing the order of an aggregate's events.
type Payload interface {
	// EventType is the name on the wire. It never changes.
	EventType() string
	// SchemaVersion starts at 1 and grows with every incompatible change.
	SchemaVersion() int
	// AggregateID names the thing the event is about; it is the default partition key.
	AggregateID() string
}

// DomainEvent is the envelope of one event, with its data still encoded.
type DomainEvent struct {
	EventID        uuid.UUID
	EventType      string
	SchemaVersion  int
	AggregateID    string
	Timestamp      time.Time
	CorrelationID  string
	CausationID    string
	IdempotencyKey string
	Metadata       map[string]string
	Data           json.RawMessage

	// PartitionKey orders and routes the event. Empty means AggregateID. It
	// travels beside the document (a column, a header), not in it.
	PartitionKey string

	unknown []byte // members of the document written by a newer version, spliced back by Encode
}

// Key is the partition key in force: PartitionKey, else AggregateID.
func (e DomainEvent) Key() string {
	if e.PartitionKey != "" {
		return e.PartitionKey
	}
	return e.AggregateID
}

// Event is a DomainEvent whose data has been decoded into T.
type Event[T Payload] struct {
	DomainEvent
	Data T
}

// New builds the envelope of p.
func New(ctx context.Context, p Payload) (DomainEvent, error) {
	return DomainEvent{}, errors.ErrUnsupported
}

// Encode writes the one JSON document of the event.
func (e DomainEvent) Encode() ([]byte, error) { return nil, errors.ErrUnsupported }

// Decode reads what Encode has written.
func Decode(document []byte) (DomainEvent, error) { return DomainEvent{}, errors.ErrUnsupported }
