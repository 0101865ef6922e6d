package rabbitmq

import (
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// headerUUID carries the message's UUID, as watermill-amqp's DefaultMarshaler
// names it. Metadata are the other headers.
const headerUUID = "_watermill_message_uuid"

// maxShort is the longest short string of AMQP 0-9-1 (section 4.2.5.3): routing
// keys, header names, message ids and names of exchanges and queues.
const maxShort = 255

// A source is one call's messages: those of a relay, or those of Publish.
type source interface {
	len() int
	topic(i int) string
	key(i int) (key string, ordered bool) // what order is kept by, within a topic
	id(i int) string
	eventType(i int) string
	size(i int) (payload, headers int)
	invalid(i int) (reason string)
	fill(p *amqp.Publishing, i int) // p.Headers is an empty table to write into
}

// partition is what ByPartitionKey routes by.
func partition(src source, i int) string {
	key, _ := src.key(i)
	return key
}

type relayMessages []*outbox.Message

func (s relayMessages) len() int                 { return len(s) }
func (s relayMessages) topic(i int) string       { return s[i].Topic }
func (s relayMessages) key(i int) (string, bool) { return s[i].Key, true }
func (s relayMessages) id(i int) string          { return s[i].EventID.String() }
func (s relayMessages) eventType(i int) string   { return s[i].EventType }

func (s relayMessages) size(i int) (payload, headers int) {
	m := s[i]
	headers = propertyBytes + len(headerUUID) + 36
	// The longest numbers there are, instead of the strings.
	const numbers = 20 + 1 + 20
	headers += numbers + len(m.EventType) + len(m.Key) + len(m.ContentType) + len(m.Source) +
		len(events.HeaderEventType) + len(events.HeaderSchemaVersion) + len(events.HeaderPartitionKey) +
		len(events.HeaderContentType) + len(events.HeaderPosition) + 5*fieldBytes
	for k, v := range m.Headers {
		headers += len(k) + len(v) + fieldBytes
	}
	return len(m.Payload), headers
}

const (
	fieldBytes    = 1 + 1 + 4 // of a header: the lengths of name and value, and its type
	propertyBytes = 512       // of the other properties, at most
)

func (s relayMessages) invalid(i int) string {
	m := s[i]
	if len(m.EventType) > maxShort || len(m.ContentType) > maxShort {
		return "its event type or its content type has more than 255 bytes, the most that AMQP has room for"
	}
	for k := range m.Headers {
		if reason := badHeader(k); reason != "" {
			return reason
		}
	}
	return ""
}

func (s relayMessages) fill(p *amqp.Publishing, i int) {
	m := s[i]
	id := m.EventID.String()
	m.EachHeader(func(name, value string) { p.Headers[name] = value })
	p.Headers[headerUUID] = id
	p.MessageId, p.ContentType, p.Type, p.Body = id, m.ContentType, m.EventType, m.Payload
	p.Timestamp = timeOf(m.EventID)
}

// timeOf is the time in an event id of version 7, which is the event's own
// unless it was given another one; else it is now. AMQP has whole seconds.
func timeOf(id uuid.UUID) time.Time {
	if id.Version() != 7 {
		return time.Now()
	}
	return time.Unix(id.Time().UnixTime())
}

type watermillMessages struct {
	to   string
	msgs []*message.Message
}

func (s watermillMessages) len() int         { return len(s.msgs) }
func (s watermillMessages) topic(int) string { return s.to }

func (s watermillMessages) key(i int) (string, bool) {
	if s.msgs[i] == nil {
		return "", false
	}
	key, ok := s.msgs[i].Metadata[events.HeaderPartitionKey]
	return key, ok
}

func (s watermillMessages) id(i int) string {
	if s.msgs[i] == nil {
		return ""
	}
	return s.msgs[i].UUID
}

func (s watermillMessages) eventType(i int) string { return s.msgs[i].Metadata[events.HeaderEventType] }

func (s watermillMessages) size(i int) (payload, headers int) {
	m := s.msgs[i]
	headers = propertyBytes + len(headerUUID) + len(m.UUID) + fieldBytes
	for k, v := range m.Metadata {
		headers += len(k) + len(v) + fieldBytes
	}
	return len(m.Payload), headers
}

func (s watermillMessages) invalid(i int) string {
	m := s.msgs[i]
	if m == nil {
		return "the message is nil"
	}
	if len(m.UUID) > maxShort {
		return "its UUID has more than 255 bytes, the most that AMQP has room for"
	}
	if len(m.Metadata[events.HeaderContentType]) > maxShort {
		return "its content type has more than 255 bytes, the most that AMQP has room for"
	}
	for k := range m.Metadata {
		if reason := badHeader(k); reason != "" {
			return reason
		}
	}
	return ""
}

func (s watermillMessages) fill(p *amqp.Publishing, i int) {
	m := s.msgs[i]
	for k, v := range m.Metadata {
		if !brokersOwn(k) {
			p.Headers[k] = v
		}
	}
	p.Headers[headerUUID] = m.UUID
	p.MessageId, p.ContentType, p.Body = m.UUID, m.Metadata[events.HeaderContentType], m.Payload
	if p.Type = m.Metadata[events.HeaderEventType]; len(p.Type) > maxShort {
		p.Type = ""
	}
	p.Timestamp = time.Now()
}

// badHeader says what is wrong with a header's name.
func badHeader(name string) string {
	switch {
	case name == headerUUID:
		return "the metadata name " + headerUUID + " is reserved for the message's UUID; rename it"
	case name == "CC" || name == "BCC":
		return "RabbitMQ takes the header " + name + " for further routing keys (sender-selected distribution); rename it"
	case len(name) > maxShort:
		return "a metadata name has more than 255 bytes, the most that AMQP has room for; shorten it"
	}
	return ""
}

// brokersOwn tells headers that RabbitMQ writes when it dead-letters or
// redelivers. On a message that is published again, by a poison queue for
// example, they would stand as strings where RabbitMQ expects tables.
func brokersOwn(name string) bool {
	return name == headerDeaths || name == headerDeliveries ||
		strings.HasPrefix(name, "x-first-death-") || strings.HasPrefix(name, "x-last-death-")
}

const (
	headerDeaths     = "x-death"          // where the message has been dead-lettered before
	headerDeliveries = "x-delivery-count" // by a quorum queue: how often it came back
)
