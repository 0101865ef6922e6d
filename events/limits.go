package events

// The limits of an event. Validate, New, Encode and Decode enforce all of them
// but MaxDocumentBytes, which belongs to the log that stores the event (see
// [DomainEvent.CheckSize]). All sizes are bytes of UTF-8.
const (
	// MaxEventTypeBytes bounds an event type: one or more segments of a-z, 0-9
	// and '_', joined by single dots, such as order.line.added. The grammar is
	// narrow because the type becomes part of topics, metrics and file names;
	// upper case would give one event two spellings.
	MaxEventTypeBytes = 128

	// MaxSchemaVersion is the highest schema version: it has to fit a Postgres integer.
	MaxSchemaVersion = 1<<31 - 1

	// MaxKeyBytes bounds an aggregate id and a partition key. Both are indexed
	// by Postgres, whose B-tree entries end at 2,704 bytes: an unbounded key
	// would fail inside the user's transaction.
	MaxKeyBytes = 255

	// MaxIDBytes bounds a correlation id, a causation id and an idempotency key.
	MaxIDBytes = 255

	// MaxMetadataEntries, MaxMetadataKeyBytes and MaxMetadataBytes bound the
	// metadata: how many entries, how long a key, and all keys and values together.
	MaxMetadataEntries  = 64
	MaxMetadataKeyBytes = 128
	MaxMetadataBytes    = 16 << 10

	// MaxDepth bounds how deeply arrays and objects nest in data, and in a
	// member that this version does not know. Go itself reads up to 10,000
	// levels; consumers in other languages stop far earlier (Jackson at 1,000).
	MaxDepth = 1000

	// MaxUnknownMembers bounds the members of a document that this version does
	// not know and carries along.
	MaxUnknownMembers = 64

	// MaxDocumentBytes is the default limit of an encoded event: what the
	// common brokers accept without being told otherwise, SQS included.
	MaxDocumentBytes = 256 << 10

	// HardMaxDocumentBytes is the size over which Encode and Decode refuse a
	// document, whatever limit a log is configured with.
	HardMaxDocumentBytes = 16 << 20
)

// CheckSize is the check of whoever has a size limit: it returns a
// *[TooLargeError] when size, the length of e's encoded document, is over limit
// bytes. A limit of 0 or less means MaxDocumentBytes.
func (e DomainEvent) CheckSize(size, limit int) error {
	if limit <= 0 {
		limit = MaxDocumentBytes
	}
	if size <= limit {
		return nil
	}
	return &TooLargeError{EventType: e.EventType, EventID: e.EventID, Size: size, Limit: limit}
}
