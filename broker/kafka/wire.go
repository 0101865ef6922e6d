package kafka

import (
	"encoding/hex"
	"regexp"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// headerUUID is the header that holds the message's id, as watermill-kafka's
// DefaultMarshaler names it; each entry of the metadata is a header of its own.
const headerUUID = "_watermill_message_uuid"

const (
	noTopic      = "it has no topic; name one"
	badTopic     = "Kafka allows no topic of this name: take 1 to 249 letters, digits, dots, dashes and underscores"
	reservedName = "the metadata name " + headerUUID + " is reserved for the message's id; rename it"
)

// legalTopic: https://github.com/apache/kafka, Topic.validate.
var legalTopic = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

func topicFault(topic string) string {
	switch {
	case topic == "":
		return noTopic
	case topic == "." || topic == ".." || !legalTopic.MatchString(topic):
		return badTopic
	}
	return ""
}

// A source is one call's messages: those of a relay, or those of Publish.
type source interface {
	len() int
	topic(i int) string
	key(i int) string // what order is kept by, within a topic
	id(i int) string
	invalid(i int) (reason string) // besides the topic's name
	room(i int) (headers, bytes int)
	write(w *writer, i int, r *kgo.Record) // all but the topic and the timestamp
	happened(i int) time.Time              // zero if nobody knows
}

// writer holds the headers of a call's records. It has the room before the
// first is written, so that nothing moves.
type writer struct {
	headers []kgo.RecordHeader
	text    []byte
}

func (w *writer) begin(src source, list []int32) {
	headers, bytes := 0, 0
	for _, i := range list {
		h, b := src.room(int(i))
		headers, bytes = headers+h, bytes+b
	}
	if cap(w.headers) < headers {
		w.headers = make([]kgo.RecordHeader, 0, headers+headers/4)
	}
	if cap(w.text) < bytes {
		w.text = make([]byte, 0, bytes+bytes/4)
	}
	w.headers, w.text = w.headers[:0], w.text[:0]
}

func (w *writer) add(name, value string) {
	at := len(w.text)
	w.text = append(w.text, value...)
	w.addText(name, at)
}

// addText adds a header whose value has been written to w.text, from at.
func (w *writer) addText(name string, at int) {
	w.headers = append(w.headers, kgo.RecordHeader{Key: name, Value: w.text[at:len(w.text):len(w.text)]})
}

// key is nil for no key: an empty one would send all of them to one partition.
func (w *writer) key(k string) []byte {
	if k == "" {
		return nil
	}
	at := len(w.text)
	w.text = append(w.text, k...)
	return w.text[at:len(w.text):len(w.text)]
}

// relayMessages writes the headers that outbox.Message.EachHeader names
// without the strings it would take.
type relayMessages []*outbox.Message

func (s relayMessages) len() int                 { return len(s) }
func (s relayMessages) topic(i int) string       { return s[i].Topic }
func (s relayMessages) key(i int) string         { return s[i].Key }
func (s relayMessages) id(i int) string          { return s[i].EventID.String() }
func (s relayMessages) happened(i int) time.Time { return eventTime(s[i].Payload, s[i].EventID) }

func (s relayMessages) invalid(i int) string {
	if _, ok := s[i].Headers[headerUUID]; ok {
		return reservedName
	}
	return ""
}

const numberLen = 20 // of an int64 with its sign

func (s relayMessages) room(i int) (headers, bytes int) {
	m := s[i]
	bytes = 36 + len(m.EventType) + numberLen + 2*len(m.Key) + len(m.ContentType) + len(m.Source) + 1 + numberLen
	for _, v := range m.Headers {
		bytes += len(v)
	}
	return 6 + len(m.Headers), bytes
}

func (s relayMessages) write(w *writer, i int, r *kgo.Record) {
	m := s[i]
	r.Key, r.Value = w.key(m.Key), m.Payload
	first := len(w.headers)

	at := len(w.text)
	w.text = appendUUID(w.text, m.EventID)
	w.addText(headerUUID, at)
	w.add(events.HeaderEventType, m.EventType)
	at = len(w.text)
	w.text = strconv.AppendInt(w.text, int64(m.SchemaVersion), 10)
	w.addText(events.HeaderSchemaVersion, at)
	w.add(events.HeaderPartitionKey, m.Key)
	w.add(events.HeaderContentType, m.ContentType)
	if m.Source != "" {
		at = len(w.text)
		w.text = append(append(w.text, m.Source...), '/')
		w.text = strconv.AppendInt(w.text, m.LogID, 10)
		w.addText(events.HeaderPosition, at)
	}
	for k, v := range m.Headers {
		w.add(k, v)
	}
	r.Headers = w.headers[first:len(w.headers):len(w.headers)]
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

// watermillMessages are those of one Publish call.
type watermillMessages struct {
	to   string
	msgs []*message.Message
	keys func(*message.Message) string
}

func (s watermillMessages) len() int         { return len(s.msgs) }
func (s watermillMessages) topic(int) string { return s.to }

func (s watermillMessages) key(i int) string {
	if s.msgs[i] == nil {
		return ""
	}
	return s.keys(s.msgs[i])
}

func (s watermillMessages) id(i int) string {
	if s.msgs[i] == nil {
		return ""
	}
	return s.msgs[i].UUID
}

func (s watermillMessages) happened(i int) time.Time {
	return eventTime(s.msgs[i].Payload, uuid.UUID{})
}

func (s watermillMessages) invalid(i int) string {
	switch m := s.msgs[i]; {
	case m == nil:
		return "the message is nil"
	case m.Metadata.Get(headerUUID) != "":
		return reservedName
	}
	return ""
}

func (s watermillMessages) room(i int) (headers, bytes int) {
	m := s.msgs[i]
	if m == nil {
		return 0, 0
	}
	bytes = len(m.UUID) + len(s.key(i))
	for _, v := range m.Metadata {
		bytes += len(v)
	}
	return 1 + len(m.Metadata), bytes
}

func (s watermillMessages) write(w *writer, i int, r *kgo.Record) {
	m := s.msgs[i]
	r.Key, r.Value = w.key(s.key(i)), m.Payload
	first := len(w.headers)
	w.add(headerUUID, m.UUID)
	for k, v := range m.Metadata {
		w.add(k, v)
	}
	r.Headers = w.headers[first:len(w.headers):len(w.headers)]
}

// batchBytes is what a batch with this record alone takes, before compression:
// https://kafka.apache.org/documentation/#recordbatch
func batchBytes(r *kgo.Record) int {
	const batchHeader = 61
	n := 1 + 1 + 1 + // attributes, and the differences to the batch's time and offset
		varintLen(len(r.Key)) + len(r.Key) + varintLen(len(r.Value)) + len(r.Value) + varintLen(len(r.Headers))
	for i := range r.Headers {
		h := &r.Headers[i]
		n += varintLen(len(h.Key)) + len(h.Key) + varintLen(len(h.Value)) + len(h.Value)
	}
	return batchHeader + varintLen(n) + n
}

// varintLen is the length of n in zigzag encoding.
func varintLen(n int) int {
	l := 1
	for u := uint64(n) << 1; u >= 0x80; u >>= 7 {
		l++
	}
	return l
}
