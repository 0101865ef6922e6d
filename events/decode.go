package events

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Decode reads a document that Encode, or a program in any language, has
// written. Nothing of document is kept.
//
// Data comes back byte for byte, all else by value, the time in UTC. A missing
// schema_version means 1; a null means that the member is missing, except for
// data. Members in any order, white space and escapes are fine. Members of other
// names, in another case too, are what a newer writer added: Encode puts them
// back, byte for byte, at the end of the document.
//
// What Encode would refuse is refused, and so are two members of one name, a
// name or text with half a surrogate pair, and anything behind the document:
// with an *[InvalidEventError], or over HardMaxDocumentBytes a *[TooLargeError].
// It never panics.
func Decode(document []byte) (DomainEvent, error) {
	if len(document) > HardMaxDocumentBytes {
		return DomainEvent{}, &TooLargeError{Size: len(document), Limit: HardMaxDocumentBytes}
	}
	d := decoder{doc: document}
	ok := d.document()
	d.settle()
	if !ok {
		return DomainEvent{}, d.e.refuse("decode", d.field, d.fault)
	}
	if d.seen&(1<<memberData) == 0 {
		return DomainEvent{}, d.e.refuse("decode", "data", "is missing: an event that says nothing more carries {} or null")
	}
	if !d.versioned {
		d.e.SchemaVersion = 1
		// The one member that can make a document longer when it is written again.
		if err := d.e.CheckSize(len(document)+len(`"schema_version":1,`), HardMaxDocumentBytes); err != nil {
			return DomainEvent{}, err
		}
	}
	// The data was checked while it was read.
	if err := d.e.checkEnvelope("decode"); err != nil {
		return DomainEvent{}, err
	}
	return d.e, nil
}

// The members that this version knows.
const (
	memberEventID = iota
	memberEventType
	memberSchemaVersion
	memberAggregateID
	memberTimestamp
	memberCorrelationID
	memberCausationID
	memberIdempotencyKey
	memberMetadata
	memberData
	memberCount
)

var memberNames = [memberCount]string{
	"event_id", "event_type", "schema_version", "aggregate_id", "timestamp",
	"correlation_id", "causation_id", "idempotency_key", "metadata", "data",
}

// decoder walks once over a document. Its methods return false when they have
// noted a fault.
type decoder struct {
	doc []byte
	at  int // next byte of doc

	e         DomainEvent
	seen      uint16 // a bit for each known member
	versioned bool   // schema_version was there, and not null

	texts [memberCount][]byte // as they read without escapes; parts of doc where nothing is escaped

	names [][]byte // of unknown members, as they read without escapes

	field, fault string
}

func (d *decoder) fail(field, fault string) bool {
	d.field, d.fault = field, fault
	return false
}

// malformed notes that at d.at something stands that should not.
func (d *decoder) malformed(field, fault string) bool {
	return d.fail(field, "is not valid JSON: at byte "+strconv.Itoa(d.at)+" of the document "+fault+"; something cut or changed it on its way, or another program wrote it")
}

// settle makes one string of the texts, of which the fields are parts: one
// allocation, and no field that somebody keeps pins the whole document.
func (d *decoder) settle() {
	size := 0
	for _, text := range d.texts {
		size += len(text)
	}
	var all strings.Builder
	all.Grow(size)
	for _, text := range d.texts {
		all.Write(text)
	}
	rest := all.String()
	take := func(member int) string {
		n := len(d.texts[member])
		text := rest[:n]
		rest = rest[n:]
		return text
	}
	d.e.EventType = take(memberEventType)
	d.e.AggregateID = take(memberAggregateID)
	d.e.CorrelationID = take(memberCorrelationID)
	d.e.CausationID = take(memberCausationID)
	d.e.IdempotencyKey = take(memberIdempotencyKey)
}

func (d *decoder) document() bool {
	if !utf8.Valid(d.doc) {
		return d.fail("document", "is not UTF-8: JSON has to be")
	}
	if d.at = skipSpace(d.doc, 0); d.at >= len(d.doc) || d.doc[d.at] != '{' {
		return d.malformed("document", "an object should begin")
	}
	if d.at = skipSpace(d.doc, d.at+1); d.at < len(d.doc) && d.doc[d.at] == '}' {
		d.at++
	} else {
		for more := true; more; {
			if !d.member() {
				return false
			}
			d.at = skipSpace(d.doc, d.at)
			switch {
			case d.at < len(d.doc) && d.doc[d.at] == ',':
				d.at = skipSpace(d.doc, d.at+1)
			case d.at < len(d.doc) && d.doc[d.at] == '}':
				d.at++
				more = false
			default:
				return d.malformed("document", "an object should go on with a comma or end")
			}
		}
	}
	if d.at = skipSpace(d.doc, d.at); d.at < len(d.doc) {
		return d.malformed("document", "something follows the event")
	}
	return true
}

// member reads one member of the document, known or not.
func (d *decoder) member() bool {
	start := d.at
	value, nameEnd, fault := scanName(d.doc, start)
	if d.at = value; fault != "" {
		return d.malformed("document", fault)
	}
	name, ok := d.plain(d.doc[start:nameEnd])
	if !ok {
		return d.fail("document", "has a member whose name holds half a surrogate pair: that is no character; correct the writer")
	}
	known := memberNamed(name)
	field := "document"
	if known >= 0 {
		field = memberNames[known]
		if d.seen&(1<<known) != 0 {
			return d.fail(field, "appears twice, and readers would disagree on which one holds: correct the writer")
		}
		d.seen |= 1 << known
	}
	end, fault := scanValue(d.doc, value, MaxDepth)
	if d.at = end; fault != "" {
		return d.malformed(field, fault)
	}
	if known < 0 {
		return d.unknown(name, d.doc[start:nameEnd], d.doc[value:end])
	}
	return d.known(known, d.doc[value:end])
}

func memberNamed(name []byte) int {
	for i := range memberNames {
		if string(name) == memberNames[i] {
			return i
		}
	}
	return -1
}

// known takes over the value, which is valid JSON, of a known member.
func (d *decoder) known(member int, value []byte) bool {
	if member == memberData {
		d.e.Data = bytes.Clone(value)
		return true
	}
	if string(value) == "null" {
		return true
	}
	field := memberNames[member]
	switch member {
	case memberSchemaVersion:
		return d.version(value)
	case memberMetadata:
		return d.metadata(value)
	}
	if value[0] != '"' {
		return d.fail(field, "is not a string: correct the writer")
	}
	text, ok := d.plain(value)
	if !ok {
		return d.fail(field, halfPair)
	}
	switch member {
	case memberEventID:
		id, err := uuid.ParseBytes(text)
		if err != nil || len(text) != 36 {
			return d.fail(field, "is not a UUID in its form of 36 characters: correct the writer")
		}
		d.e.EventID = id
	case memberTimestamp:
		if err := d.e.Timestamp.UnmarshalText(text); err != nil || !isRFC3339(text) {
			return d.fail(field, "is not a time in RFC 3339 with at most nine digits after the second: correct the writer")
		}
		d.e.Timestamp = d.e.Timestamp.UTC()
	default:
		d.texts[member] = text
	}
	return true
}

const halfPair = "holds half a surrogate pair, which is no character: correct the writer"

// isRFC3339 is strict where package time is not: it also reads a comma for the
// point and an hour of one digit, and drops what is finer than a nanosecond.
func isRFC3339(s []byte) bool {
	const shape = "dddd-dd-ddTdd:dd:dd"
	if len(s) < len(shape) || !shaped(s[:len(shape)], shape) {
		return false
	}
	s = s[len(shape):]
	if len(s) > 0 && s[0] == '.' {
		end := skipDigits(s, 1)
		if end == 1 || end > 1+9 {
			return false
		}
		s = s[end:]
	}
	if len(s) == 1 {
		return s[0] == 'Z'
	}
	return (shaped(s, "+dd:dd") || shaped(s, "-dd:dd")) && string(s[1:3]) <= "23" && string(s[4:6]) <= "59"
}

// shaped tells whether s is like shape, in which d stands for any digit.
func shaped(s []byte, shape string) bool {
	if len(s) != len(shape) {
		return false
	}
	for i, c := range s {
		if digit := shape[i] == 'd'; digit && !isDigit(c) || !digit && c != shape[i] {
			return false
		}
	}
	return true
}

func (d *decoder) version(value []byte) bool {
	n := int64(0)
	for _, c := range value {
		if n = n*10 + int64(c-'0'); !isDigit(c) || n > MaxSchemaVersion {
			return d.fail("schema_version", "is not a whole number from 1 to 2147483647: correct the writer")
		}
	}
	d.e.SchemaVersion, d.versioned = int(n), true
	return true
}

// metadata reads an object of strings. It is valid JSON.
func (d *decoder) metadata(value []byte) bool {
	if value[0] != '{' {
		return d.fail("metadata", "is not an object: correct the writer")
	}
	for i := skipSpace(value, 1); value[i] != '}'; {
		val, nameEnd, _ := scanName(value, i)
		key, ok := d.plain(value[i:nameEnd])
		if !ok {
			return d.fail("metadata", "has a key that "+halfPair)
		}
		if value[val] != '"' {
			return d.fail("metadata", "value of "+clip(string(key))+" is not a string: correct the writer")
		}
		end, _, _ := scanString(value, val)
		text, ok := d.plain(value[val:end])
		if !ok {
			return d.fail("metadata", "value of "+clip(string(key))+" "+halfPair)
		}
		if _, twice := d.e.Metadata[string(key)]; twice {
			return d.fail("metadata", "key "+clip(string(key))+" appears twice, and readers would disagree on which one holds: correct the writer")
		}
		if len(d.e.Metadata) == MaxMetadataEntries {
			return d.fail("metadata", "has more than "+strconv.Itoa(MaxMetadataEntries)+" entries: put them into the data")
		}
		if d.e.Metadata == nil {
			d.e.Metadata = make(map[string]string)
		}
		d.e.Metadata[string(key)] = string(text)
		if i = skipSpace(value, end); value[i] == ',' {
			i = skipSpace(value, i+1)
		}
	}
	return true
}

// unknown keeps a member that a newer writer added.
func (d *decoder) unknown(name, quoted, value []byte) bool {
	for _, other := range d.names {
		if bytes.Equal(name, other) {
			return d.fail("document", "has the member "+clip(string(name))+" twice, and readers would disagree on which one holds: correct the writer")
		}
	}
	if len(d.names) == MaxUnknownMembers {
		return d.fail("document", "has more than "+strconv.Itoa(MaxUnknownMembers)+" members that are not part of an event: put them into the data or the metadata")
	}
	d.names = append(d.names, name)
	if len(d.e.unknown) > 0 {
		d.e.unknown = append(d.e.unknown, ',')
	}
	d.e.unknown = append(append(append(d.e.unknown, quoted...), ':'), value...)
	return true
}

// plain is what a scanned string says: part of the document itself where
// nothing is escaped.
func (d *decoder) plain(quoted []byte) ([]byte, bool) {
	inside := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(inside, '\\') < 0 {
		return inside, true
	}
	return unescape(nil, inside)
}
