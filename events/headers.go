package events

// The headers that travel beside the document, as Watermill metadata. They hold
// what routing and tracing need; the document alone is the event. The message's
// UUID is the event id.
const (
	HeaderEventType     = "event_type"     // DomainEvent.EventType
	HeaderSchemaVersion = "schema_version" // DomainEvent.SchemaVersion, in decimal
	HeaderPartitionKey  = "partition_key"  // DomainEvent.Key
	HeaderContentType   = "content_type"   // ContentTypeJSON

	// HeaderPosition is where the event stands in its log, as
	// "source/incarnation/id": consumers may use it as a fence.
	HeaderPosition = "postbus_position"
	// HeaderReplayed marks an event that was parked and sent later, possibly
	// behind younger ones of its key.
	HeaderReplayed = "postbus_replayed"

	// HeaderTraceParent and HeaderTraceState carry the W3C trace context. They
	// are copied from the metadata entries of the same names.
	HeaderTraceParent = "traceparent"
	HeaderTraceState  = "tracestate"
)

// ContentTypeJSON is the content type of the document that Encode writes.
const ContentTypeJSON = "application/json"

// reservedPrefixes may not begin a metadata key, in any case: the first is
// ours, the second Watermill's, whose marshalers fail for ever on such a key.
var reservedPrefixes = [...]string{"postbus_", "_watermill_"}
