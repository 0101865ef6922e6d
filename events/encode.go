package events

import (
	"encoding/hex"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Encode writes the event's document in a slice of its own. See [DomainEvent.AppendTo].
func (e DomainEvent) Encode() ([]byte, error) {
	return e.AppendTo(make([]byte, 0, e.sizeHint()))
}

// AppendTo appends the event's document to dst and returns the longer slice; on
// an error it returns dst as it was. The document is one JSON object in UTF-8,
// without white space between its members:
//
//	{"event_id":…,"event_type":…,"schema_version":…,"aggregate_id":…,"timestamp":…,
//	 "correlation_id":…,"causation_id":…,"idempotency_key":…,"metadata":{…},"data":…}
//
// Empty members are left out, metadata is sorted by key, data goes in as it is,
// and what a newer writer had put into the document follows at its end.
//
// The event is checked as by Validate, save that it needs no key: the errors are
// an *[InvalidEventError] or, over HardMaxDocumentBytes, a *[TooLargeError].
// Nothing is allocated besides dst's growth, with up to 16 entries of metadata.
func (e DomainEvent) AppendTo(dst []byte) ([]byte, error) {
	if err := e.check("encode"); err != nil {
		return dst, err
	}
	start := len(dst)
	b := append(dst, `{"event_id":"`...)
	b = appendUUID(b, e.EventID)
	b = append(b, `","event_type":"`...)
	b = append(b, e.EventType...) // its grammar has nothing to escape
	b = append(b, `","schema_version":`...)
	b = strconv.AppendInt(b, int64(e.SchemaVersion), 10)
	b = appendMember(b, `,"aggregate_id":`, e.AggregateID)
	b = append(b, `,"timestamp":"`...)
	b = e.Timestamp.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendMember(b, `,"correlation_id":`, e.CorrelationID)
	b = appendMember(b, `,"causation_id":`, e.CausationID)
	b = appendMember(b, `,"idempotency_key":`, e.IdempotencyKey)
	b = appendMetadata(b, e.Metadata)
	b = append(b, `,"data":`...)
	b = append(b, e.Data...)
	if len(e.unknown) > 0 {
		b = append(b, ',')
		b = append(b, e.unknown...)
	}
	b = append(b, '}')
	if err := e.CheckSize(len(b)-start, HardMaxDocumentBytes); err != nil {
		return dst, err
	}
	return b, nil
}

// sizeHint is an upper bound for an event whose texts need no escapes, so that
// Encode allocates once.
func (e *DomainEvent) sizeHint() int {
	const names = 320 // all member names, quotes, id, version and timestamp
	n := names + len(e.EventType) + len(e.AggregateID) + len(e.CorrelationID) + len(e.CausationID) +
		len(e.IdempotencyKey) + len(e.Data) + len(e.unknown)
	for k, v := range e.Metadata {
		n += len(k) + len(v) + len(`"":"",`)
	}
	return min(n, HardMaxDocumentBytes)
}

func appendMember(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendString(append(b, name...), value)
}

func appendMetadata(b []byte, m map[string]string) []byte {
	if len(m) == 0 {
		return b
	}
	var few [16]string // on the stack
	keys := few[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	sep := `,"metadata":{`
	for _, k := range keys {
		b = append(b, sep...)
		b = appendString(b, k)
		b = append(b, ':')
		b = appendString(b, m[k])
		sep = ","
	}
	return append(b, '}')
}

// appendString writes s, which is UTF-8, with the fewest escapes JSON allows.
// Decode relies on that: no string grows by being read and written again.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	text := bytesOf(s)
	for i := skipVerbatim(text, 0); i < len(s); i = skipVerbatim(text, i+1) {
		c := s[i]
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\b':
			b = append(b, `\b`...)
		case '\f':
			b = append(b, `\f`...)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			const digits = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&0xf])
		}
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

func appendUUID(b []byte, id uuid.UUID) []byte {
	b = hex.AppendEncode(b, id[:4])
	b = hex.AppendEncode(append(b, '-'), id[4:6])
	b = hex.AppendEncode(append(b, '-'), id[6:8])
	b = hex.AppendEncode(append(b, '-'), id[8:10])
	return hex.AppendEncode(append(b, '-'), id[10:])
}
