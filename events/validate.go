package events

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Validate checks all that this package demands of an event that is to be
// published, and returns nil or an *[InvalidEventError] (a *[TooLargeError] for
// data beyond all measure) about the first fault. New has done it already; it
// serves those who build envelopes by hand.
//
// Encode and AppendTo check the same, save that an event needs a key: the
// partition key is no part of the document.
func (e DomainEvent) Validate() error {
	if err := e.check("validate"); err != nil {
		return err
	}
	return e.checkKeyed("validate")
}

func (e *DomainEvent) checkKeyed(op string) error {
	if e.Key() == "" {
		return e.refuse(op, "aggregate_id", "is empty, and so is the partition key, so that nothing orders the event: name the aggregate, or give a key by events.With(payload, events.PartitionKey(key))")
	}
	return nil
}

// check is Validate without the demand for a key.
func (e *DomainEvent) check(op string) error {
	if err := e.checkEnvelope(op); err != nil {
		return err
	}
	return e.checkData(op)
}

// checkEnvelope checks everything but the data.
func (e *DomainEvent) checkEnvelope(op string) error {
	if e.EventID == uuid.Nil {
		return e.refuse(op, "event_id", "is missing or zero: take one from events.NewID, or let events.New draw it")
	}
	if fault := faultOfType(e.EventType); fault != "" {
		return e.refuse(op, "event_type", fault)
	}
	if e.SchemaVersion < 1 || e.SchemaVersion > MaxSchemaVersion {
		return e.refuse(op, "schema_version", "is "+strconv.Itoa(e.SchemaVersion)+", outside 1 to 2147483647: versions start at 1")
	}
	if fault := faultOfTime(e.Timestamp); fault != "" {
		return e.refuse(op, "timestamp", fault)
	}
	for _, id := range [...]struct {
		field, value string
		limit        int
	}{
		{"aggregate_id", e.AggregateID, MaxKeyBytes},
		{"partition_key", e.PartitionKey, MaxKeyBytes},
		{"correlation_id", e.CorrelationID, MaxIDBytes},
		{"causation_id", e.CausationID, MaxIDBytes},
		{"idempotency_key", e.IdempotencyKey, MaxIDBytes},
	} {
		if fault := faultOfID(id.value, id.limit); fault != "" {
			return e.refuse(op, id.field, fault)
		}
	}
	if len(e.Metadata) > 0 {
		if fault := faultOfMetadata(e.Metadata); fault != "" {
			return e.refuse(op, "metadata", fault)
		}
	}
	return nil
}

func (e *DomainEvent) checkData(op string) error {
	switch {
	case len(e.Data) == 0:
		return e.refuse(op, "data", "is empty: it has to be one JSON value; an event that says nothing more carries {} or null")
	case len(e.Data) > HardMaxDocumentBytes:
		return e.CheckSize(len(e.Data), HardMaxDocumentBytes)
	case isSpace(e.Data[0]) || isSpace(e.Data[len(e.Data)-1]):
		// White space around a value is not part of it: a reader could not give it back.
		return e.refuse(op, "data", "has white space around its JSON value, which cannot come back byte for byte: cut it off with bytes.TrimSpace")
	case !utf8.Valid(e.Data):
		return e.refuse(op, "data", "is not UTF-8: encode bytes that are not text as base64")
	}
	end, fault := scanValue(e.Data, 0, MaxDepth)
	if fault == "" && end < len(e.Data) {
		fault = "something follows the value"
	}
	if fault != "" {
		return e.refuse(op, "data", "is not one JSON value: at byte "+strconv.Itoa(end)+" "+fault+"; let encoding/json write it")
	}
	return nil
}

func (e *DomainEvent) refuse(op, field, reason string) error {
	return &InvalidEventError{Op: op, EventType: e.EventType, EventID: e.EventID, Field: field, Reason: reason}
}

func faultOfType(s string) string {
	const grammar = ": an event type is made of segments of a-z, 0-9 and _, joined by single dots, such as order.placed"
	if s == "" {
		return "is empty" + grammar
	}
	if len(s) > MaxEventTypeBytes {
		return tooLong(len(s), MaxEventTypeBytes) + grammar
	}
	segment := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_':
			segment++
		case c == '.' && segment > 0:
			segment = 0
		default:
			return "has " + strconv.QuoteRune(runeAt(s, i)) + " at byte " + strconv.Itoa(i) + grammar
		}
	}
	if segment == 0 {
		return "ends with a dot" + grammar
	}
	return ""
}

func faultOfTime(t time.Time) string {
	if t.IsZero() {
		return "is missing or zero: say when it happened, or let events.New do so"
	}
	if year := t.UTC().Year(); year < 1 || year > 9999 {
		return "is in the year " + strconv.Itoa(year) + " (UTC), which RFC 3339 cannot write: keep to the years 1 to 9999"
	}
	return ""
}

// faultOfID judges a text that identifies something. It travels in headers and
// stands in logs and indexes, so control characters are refused, NUL among them.
func faultOfID(s string, limit int) string {
	if len(s) > limit {
		return tooLong(len(s), limit) + ": use a shorter id, for instance a hash of the long one"
	}
	return faultOfText(s, false)
}

// faultOfText wants UTF-8 without control characters, or without NUL alone where
// free text is allowed.
func faultOfText(s string, free bool) string {
	i, text := 0, bytesOf(s)
	for len(s)-i >= 8 && isPlain(load(text, i)) {
		i += 8
	}
	ascii := true
	for ; i < len(s); i++ {
		c := s[i]
		if c >= utf8.RuneSelf {
			ascii = false
		} else if c == 0 || !free && (c < ' ' || c == 0x7f) {
			return controlAt(i, rune(c))
		}
	}
	if ascii {
		return ""
	}
	for i, c := range s {
		if c == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				return "is not UTF-8 at byte " + strconv.Itoa(i) + ": convert it, or encode it as hex or base64"
			}
		}
		if !free && unicode.IsControl(c) {
			return controlAt(i, c)
		}
	}
	return ""
}

func controlAt(i int, c rune) string {
	return "has the control character " + strconv.QuoteRuneToASCII(c) + " at byte " + strconv.Itoa(i) + ": take it out, or encode the text as hex or base64"
}

func faultOfMetadata(m map[string]string) string {
	if len(m) > MaxMetadataEntries {
		return "has " + strconv.Itoa(len(m)) + " entries and the limit is " + strconv.Itoa(MaxMetadataEntries) + ": put them into the data"
	}
	total := 0
	for k, v := range m {
		if k == "" {
			return "has an empty key: give every entry a name"
		}
		if len(k) > MaxMetadataKeyBytes {
			return "key " + clip(k) + " " + tooLong(len(k), MaxMetadataKeyBytes) + ": use a shorter name"
		}
		if fault := faultOfText(k, false); fault != "" {
			return "key " + clip(k) + " " + fault
		}
		for _, prefix := range reservedPrefixes {
			if len(k) >= len(prefix) && strings.EqualFold(k[:len(prefix)], prefix) {
				return "key " + clip(k) + " begins with the reserved prefix " + prefix + ": use another name"
			}
		}
		// What becomes a header must not be able to end one and begin another.
		free := k != HeaderTraceParent && k != HeaderTraceState
		if fault := faultOfText(v, free); fault != "" {
			return "value of " + clip(k) + " " + fault
		}
		total += len(k) + len(v)
	}
	if total > MaxMetadataBytes {
		return "takes " + strconv.Itoa(total) + " bytes and the limit is " + strconv.Itoa(MaxMetadataBytes) + ": put the bulk into the data"
	}
	return ""
}

func tooLong(n, limit int) string {
	return "is " + strconv.Itoa(n) + " bytes long and the limit is " + strconv.Itoa(limit)
}

func runeAt(s string, i int) rune {
	c, _ := utf8.DecodeRuneInString(s[i:])
	return c
}
