package rabbitmq

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/events"
)

// Metadata that the Subscriber sets on the messages it hands over. It is about
// the delivery: what a publisher has written under these names is dropped.
const (
	// HeaderDeliveryCount: how often this message has been handed over, this time
	// included ("1" for the first), as far as RabbitMQ tells: a quorum queue counts,
	// a classic one knows only that it was not the first time. Repeats in place
	// are added.
	HeaderDeliveryCount = "postbus_delivery_count"
	// HeaderQueue: the queue it came from.
	HeaderQueue = "postbus_queue"
	// HeaderExchange and HeaderRoutingKey: how it was published.
	HeaderExchange   = "postbus_exchange"
	HeaderRoutingKey = "postbus_routing_key"
	// HeaderUndecodable: why the message could not be read. The message stands in
	// for it: its payload is a RawDelivery in JSON. It will never be handled: poison it.
	HeaderUndecodable = "postbus_undecodable"
)

// A delivery is one message of a queue, while it is ours.
type delivery struct {
	amqp.Delivery
	from  *consumer
	since time.Time

	dead bool // given up, to be dead-lettered
}

// key is what order is kept by. A message without one is by itself.
func (d *delivery) key() string {
	key, _ := d.Headers[events.HeaderPartitionKey].(string)
	return key
}

// message builds what the handler gets, afresh for every attempt; the first is 1.
func (d *delivery) message(attempt int) *message.Message {
	msg := d.decode()
	m := msg.Metadata
	m[HeaderDeliveryCount] = strconv.FormatInt(d.before()+int64(attempt), 10)
	m[HeaderQueue] = d.from.queue
	m[HeaderExchange], m[HeaderRoutingKey] = d.Exchange, d.RoutingKey
	return msg
}

// before is how often it was delivered earlier.
func (d *delivery) before() int64 {
	switch n := d.Headers[headerDeliveries].(type) {
	case int64:
		return n
	case int32:
		return int64(n)
	}
	if d.Redelivered {
		return 1
	}
	return 0
}

// decode reads what may have been written by anybody.
func (d *delivery) decode() *message.Message {
	id := d.MessageId
	if given, ok := d.Headers[headerUUID]; ok {
		if id, ok = given.(string); !ok {
			return d.standIn(fmt.Sprintf("its header %s is no string, but of type %T", headerUUID, given))
		}
	}
	if id == "" {
		id = uuid.NewString() // of a message that nobody has given one
	}
	msg := message.NewMessage(id, d.Body)
	msg.Metadata = make(message.Metadata, len(d.Headers)+5)
	for name, value := range d.Headers {
		if name != headerUUID && name != HeaderUndecodable {
			msg.Metadata[name] = headerText(value)
		}
	}
	if _, told := msg.Metadata[events.HeaderContentType]; !told && d.ContentType != "" {
		msg.Metadata[events.HeaderContentType] = d.ContentType
	}
	return msg
}

// RawDelivery is the payload, in JSON, of a message with HeaderUndecodable: the
// message as it came.
type RawDelivery struct {
	Queue      string         `json:"queue"`
	Exchange   string         `json:"exchange"`
	RoutingKey string         `json:"routing_key"`
	MessageID  string         `json:"message_id,omitempty"`
	Headers    map[string]any `json:"headers,omitempty"`
	Body       []byte         `json:"body"` // base64
}

// undecodable is the name space of the ids that stand-ins without one get.
var undecodable = uuid.MustParse("6f0b0c5e-8d1f-5c0b-9f55-2b8f6d0f3a31")

func (d *delivery) standIn(reason string) *message.Message {
	raw := RawDelivery{Queue: d.from.queue, Exchange: d.Exchange, RoutingKey: d.RoutingKey, MessageID: d.MessageId, Body: d.Body}
	raw.Headers, _ = plain(d.Headers).(map[string]any)
	payload, err := json.Marshal(raw)
	if err != nil {
		payload, _ = json.Marshal(RawDelivery{Queue: raw.Queue, Body: raw.Body}) // a number that JSON has not: NaN
	}
	id := d.MessageId
	if id == "" {
		id = uuid.NewSHA1(undecodable, payload).String()
	}
	msg := message.NewMessage(id, payload)
	msg.Metadata[HeaderUndecodable] = reason
	return msg
}

// headerText is what a header says, in metadata: strings as they are, tables and
// lists as JSON. watermill-amqp knows strings only, and can't read what RabbitMQ
// has dead-lettered or a quorum queue delivers again.
func headerText(value any) string {
	switch v := plain(value).(type) {
	case nil:
		return ""
	case string:
		return v
	case map[string]any, []any:
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Sprint(v)
		}
		return string(text)
	default:
		return fmt.Sprint(v)
	}
}

// plain turns AMQP's types into those of JSON.
func plain(value any) any {
	switch v := value.(type) {
	case amqp.Table:
		table := make(map[string]any, len(v))
		for name, value := range v {
			table[name] = plain(value)
		}
		return table
	case []any:
		list := make([]any, len(v))
		for i, value := range v {
			list[i] = plain(value)
		}
		return list
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case []byte:
		if utf8.Valid(v) {
			return string(v)
		}
		return v // base64 in JSON
	case amqp.Decimal:
		return fmt.Sprintf("%de-%d", v.Value, v.Scale)
	}
	return value
}
