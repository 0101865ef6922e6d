package events

import (
	"encoding/json"
	"log/slog"
	"time"

	"github.com/google/uuid"
)

// Payload is what a domain event must be able to say about itself. All three
// methods are required, so that a misspelt one does not compile instead of
// silently costing the order of an aggregate's events.
//
// New calls each method once per event. They must not change the value and must
// answer the same thing every time.
type Payload interface {
	// EventType is the name on the wire, in the grammar of [MaxEventTypeBytes].
	// It never changes.
	EventType() string
	// SchemaVersion starts at 1 and grows with every incompatible change.
	SchemaVersion() int
	// AggregateID names the thing the event is about; it is the default partition key.
	AggregateID() string
}

// DomainEvent is the envelope of one event, with its data still encoded. It is
// a value: copies share Metadata and Data, which nobody may change once the
// event has been built or decoded. Reading it from several goroutines is safe.
//
// The document on the wire is what [DomainEvent.Encode] writes, not what
// json.Marshal makes of this struct.
type DomainEvent struct {
	EventID       uuid.UUID // never zero; New draws a UUIDv7
	EventType     string    // at most MaxEventTypeBytes
	SchemaVersion int       // 1 to MaxSchemaVersion
	AggregateID   string    // at most MaxKeyBytes; may be empty if PartitionKey is not
	Timestamp     time.Time // when it happened, to the nanosecond; read back in UTC

	CorrelationID  string // what set the whole chain off; a root event carries its own EventID
	CausationID    string // the EventID of the event whose handler published this one; empty for a root
	IdempotencyKey string // empty, or what the user wants repeats to be recognised by

	Metadata map[string]string // at most MaxMetadataEntries; travels inside the document
	Data     json.RawMessage   // one JSON value, carried byte for byte

	// PartitionKey orders and routes the event. Empty means AggregateID. It
	// travels beside the document (a column, a header), not in it: Decode leaves
	// it empty, and whoever reads the header sets it.
	PartitionKey string

	unknown []byte // members of the document written by a newer version, spliced back by Encode
}

// Event is a DomainEvent whose data has been decoded into T. Its Data hides the
// encoded bytes, which stay at hand as e.DomainEvent.Data.
type Event[T Payload] struct {
	DomainEvent
	Data T
}

// Key is the partition key in force: PartitionKey, else AggregateID.
func (e DomainEvent) Key() string {
	if e.PartitionKey != "" {
		return e.PartitionKey
	}
	return e.AggregateID
}

// String names the event by type and id. It leaves the data out, so that an
// event printed with %v or %s does not carry a customer's data into a log.
func (e DomainEvent) String() string { return name(e.EventType, e.EventID) }

// LogValue is what slog prints for an event: what finds it again, and none of its data.
func (e DomainEvent) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("event_type", e.EventType),
		slog.String("event_id", e.EventID.String()),
		slog.Int("schema_version", e.SchemaVersion),
	)
}
