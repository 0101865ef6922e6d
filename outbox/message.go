package outbox

import (
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
)

// Message is one event on its way from the log to a broker. The payload is the
// very bytes encoded at append. A publisher reads it and changes nothing.
type Message struct {
	LogID         int64     // id in the log: unique per incarnation, not dense
	EventID       uuid.UUID // the message id on the wire; what consumers deduplicate by
	EventType     string
	SchemaVersion int
	Topic         string
	Key           string // partition key: what order is kept by
	ContentType   string
	// Headers are what tracing needs (traceparent, tracestate) and what the relay
	// adds (events.HeaderReplayed); nil when there are none.
	Headers map[string]string
	// Source names the log and its incarnation ("source/incarnation"), shared by all
	// messages of a relay; see Position.
	Source  string
	Payload []byte
}

// Position is the fence that consumers may use: source/incarnation/id. Log ids
// are issued again after a restore or an asynchronous fail-over; the incarnation
// then differs.
func (m *Message) Position() string {
	return m.Source + "/" + strconv.FormatInt(m.LogID, 10)
}

// EachHeader calls f for every header of the message on the wire, always in the
// same order for the fixed ones.
func (m *Message) EachHeader(f func(name, value string)) {
	f(events.HeaderEventType, m.EventType)
	f(events.HeaderSchemaVersion, strconv.Itoa(m.SchemaVersion))
	f(events.HeaderPartitionKey, m.Key)
	f(events.HeaderContentType, m.ContentType)
	if m.Source != "" {
		f(events.HeaderPosition, m.Position())
	}
	for k, v := range m.Headers {
		f(k, v)
	}
}

// Watermill builds the message a stock publisher gets: always a fresh one,
// because middlewares and publishers write into its metadata.
func (m *Message) Watermill() *message.Message {
	w := message.NewMessage(m.EventID.String(), m.Payload)
	w.Metadata = make(message.Metadata, 5+len(m.Headers))
	m.EachHeader(func(k, v string) { w.Metadata[k] = v })
	return w
}
