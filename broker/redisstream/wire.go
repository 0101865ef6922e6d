package redisstream

import (
	"encoding/hex"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// The fields of a stream entry, as watermill-redisstream's
// DefaultMarshallerUnmarshaller names them.
const (
	fieldUUID     = "_watermill_message_uuid"
	fieldMetadata = "metadata"
	fieldPayload  = "payload"
)

// Metadata that the Subscriber sets on the messages it hands over. It is about
// the delivery: what a publisher has written under these names is dropped.
const (
	// HeaderDeliveryCount: how often this entry has been handed to a handler of
	// this group, this time included ("1" for the first), as Redis counts it: over
	// nacks, restarts and consumers.
	HeaderDeliveryCount = "postbus_delivery_count"
	// HeaderStream: the stream the entry was read from.
	HeaderStream = "postbus_stream"
	// HeaderEntryID: the entry's id in that stream.
	HeaderEntryID = "postbus_entry_id"
	// HeaderUndecodable: why the entry could not be read. The message stands in
	// for that entry: its UUID is derived from stream and entry id, its payload is
	// a RawEntry in JSON. It will never be handled: poison it.
	HeaderUndecodable = "postbus_undecodable"
)

// A source is one call's messages: those of a relay, or those of Publish.
type source interface {
	len() int
	topic(i int) string
	key(i int) string // what order is kept by, within a topic
	id(i int) string
	size(i int) int // payload plus names and values of the headers
	invalid(i int) (reason string)
	appendUUID(dst []byte, i int) []byte
	appendMetadata(dst []byte, i int) []byte // nothing at all when there is none
	payload(i int) []byte
}

// relayMessages writes the headers that outbox.Message.EachHeader names
// without the strings it would take.
type relayMessages []*outbox.Message

func (s relayMessages) len() int             { return len(s) }
func (s relayMessages) topic(i int) string   { return s[i].Topic }
func (s relayMessages) key(i int) string     { return s[i].Key }
func (s relayMessages) id(i int) string      { return s[i].EventID.String() }
func (s relayMessages) payload(i int) []byte { return s[i].Payload }

func (s relayMessages) size(i int) int {
	const numbers = 20 + 1 + 20 // the schema version, a slash and the log id, with digits and sign at most
	m := s[i]
	n := len(m.Payload) + numbers + len(m.EventType) + len(m.Key) + len(m.ContentType) + len(m.Source) +
		len(events.HeaderEventType) + len(events.HeaderSchemaVersion) + len(events.HeaderPartitionKey) +
		len(events.HeaderContentType) + len(events.HeaderPosition)
	for k, v := range m.Headers {
		n += len(k) + len(v)
	}
	return n
}

func (s relayMessages) invalid(i int) string {
	m := s[i]
	if m.Topic == "" {
		return noTopic
	}
	if _, ok := m.Headers[fieldUUID]; ok {
		return reservedName
	}
	return ""
}

const (
	noTopic      = "it has no topic; name the stream"
	reservedName = "the metadata name " + fieldUUID + " is reserved for the message's UUID; rename it"
)

func (s relayMessages) appendUUID(dst []byte, i int) []byte { return appendUUID(dst, s[i].EventID) }

func (s relayMessages) appendMetadata(dst []byte, i int) []byte {
	m := s[i]
	n := 4 + len(m.Headers)
	if m.Source != "" {
		n++
	}
	dst = appendMapHeader(dst, n)
	dst = appendPair(dst, events.HeaderEventType, m.EventType)
	dst = appendInt(appendString(dst, events.HeaderSchemaVersion), "", int64(m.SchemaVersion))
	dst = appendPair(dst, events.HeaderPartitionKey, m.Key)
	dst = appendPair(dst, events.HeaderContentType, m.ContentType)
	if m.Source != "" {
		dst = appendInt(appendString(dst, events.HeaderPosition), m.Source, m.LogID)
	}
	for k, v := range m.Headers {
		dst = appendPair(dst, k, v)
	}
	return dst
}

// appendInt appends the string "n", or "before/n".
func appendInt(dst []byte, before string, n int64) []byte {
	var digits [20]byte
	d := strconv.AppendInt(digits[:0], n, 10)
	if before == "" {
		return append(appendStringHeader(dst, len(d)), d...)
	}
	dst = append(appendStringHeader(dst, len(before)+1+len(d)), before...)
	return append(append(dst, '/'), d...)
}

func appendUUID(dst []byte, id uuid.UUID) []byte {
	for i, part := range [...][]byte{id[:4], id[4:6], id[6:8], id[8:10], id[10:]} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, part)
	}
	return dst
}

// watermillMessages are those of one Publish call: one sequence, whatever
// their keys.
type watermillMessages struct {
	to   string
	msgs []*message.Message
}

func (s watermillMessages) len() int             { return len(s.msgs) }
func (s watermillMessages) topic(int) string     { return s.to }
func (s watermillMessages) key(int) string       { return "" }
func (s watermillMessages) payload(i int) []byte { return s.msgs[i].Payload }

func (s watermillMessages) id(i int) string {
	if s.msgs[i] == nil {
		return ""
	}
	return s.msgs[i].UUID
}

func (s watermillMessages) size(i int) int {
	m := s.msgs[i]
	n := len(m.UUID) + len(m.Payload)
	for k, v := range m.Metadata {
		n += len(k) + len(v)
	}
	return n
}

func (s watermillMessages) invalid(i int) string {
	switch m := s.msgs[i]; {
	case m == nil:
		return "the message is nil"
	case s.to == "":
		return noTopic
	case m.Metadata.Get(fieldUUID) != "":
		return reservedName
	}
	return ""
}

func (s watermillMessages) appendUUID(dst []byte, i int) []byte {
	return append(dst, s.msgs[i].UUID...)
}

func (s watermillMessages) appendMetadata(dst []byte, i int) []byte {
	m := s.msgs[i].Metadata
	if len(m) == 0 {
		return dst
	}
	dst = appendMapHeader(dst, len(m))
	for k, v := range m {
		dst = appendPair(dst, k, v)
	}
	return dst
}
