package rabbitmq

import (
	"errors"
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Kind is the type of an exchange.
type Kind int

const (
	// Fanout: every queue bound to the exchange gets every message.
	Fanout Kind = iota
	// Topic: queues bind by patterns of the routing key, such as "order.#".
	Topic
	// Direct: queues bind by the exact routing key.
	Direct
	// DefaultExchange: no exchange of one's own; the topic is the name of the one
	// queue that gets the message.
	DefaultExchange
)

func (k Kind) String() string {
	switch k {
	case Fanout:
		return amqp.ExchangeFanout
	case Topic:
		return amqp.ExchangeTopic
	case Direct:
		return amqp.ExchangeDirect
	case DefaultExchange:
		return "default exchange"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// RoutingKey is what a message is routed by.
type RoutingKey int

const (
	// ByEventType: the event's type ("order.placed"; of a Watermill message, its
	// metadata event_type).
	ByEventType RoutingKey = iota
	// ByPartitionKey: the event's partition key (metadata partition_key).
	ByPartitionKey
	// ByTopic: the topic that is published to, as watermill-amqp's durable topic
	// configuration does.
	ByTopic
)

func (k RoutingKey) String() string {
	switch k {
	case ByEventType:
		return "by event type"
	case ByPartitionKey:
		return "by partition key"
	case ByTopic:
		return "by topic"
	}
	return fmt.Sprintf("RoutingKey(%d)", int(k))
}

// A router says where a message goes.
type router struct {
	kind Kind
	name string // "": the exchange is named as the topic
	key  RoutingKey
}

func (r router) exchange(topic string) string {
	switch {
	case r.kind == DefaultExchange:
		return amqp.DefaultExchange
	case r.name != "":
		return r.name
	}
	return topic
}

func (r router) routingKey(src source, i int) string {
	if r.kind == DefaultExchange {
		return src.topic(i)
	}
	switch r.key {
	case ByPartitionKey:
		return partition(src, i)
	case ByTopic:
		return src.topic(i)
	}
	return src.eventType(i)
}

func (r router) faults() (faults []error) {
	if r.kind < Fanout || r.kind > DefaultExchange {
		faults = append(faults, fmt.Errorf("PublisherConfig.Kind is %s: give Fanout, Topic, Direct or DefaultExchange", r.kind))
	}
	if r.key < ByEventType || r.key > ByTopic {
		faults = append(faults, fmt.Errorf("PublisherConfig.RoutingKey is %s: give ByEventType, ByPartitionKey or ByTopic", r.key))
	}
	if r.kind == DefaultExchange && r.name != "" {
		faults = append(faults, errors.New("PublisherConfig.Exchange is set, but Kind is DefaultExchange, which has no name: leave one of them out"))
	}
	if r.kind == DefaultExchange && r.key != ByEventType && r.key != ByTopic {
		faults = append(faults, fmt.Errorf("PublisherConfig.RoutingKey is %s, but the default exchange routes by the name of the queue, which is the topic: leave RoutingKey out", r.key))
	}
	if r.name != "" {
		if fault := nameFault(r.name); fault != "" {
			faults = append(faults, fmt.Errorf("PublisherConfig.Exchange %q %s", r.name, fault))
		}
	}
	return faults
}

// nameFault says what is wrong with the name of an exchange or queue. Names
// that begin with "amq." are the server's (AMQP 0-9-1, section 1.7.2.1).
func nameFault(name string) string {
	switch {
	case name == "":
		return "is empty: name it"
	case len(name) > maxShort:
		return fmt.Sprintf("has %d bytes: AMQP has room for %d", len(name), maxShort)
	case strings.HasPrefix(name, "amq."):
		return "begins with amq., which is reserved for RabbitMQ itself: choose another name"
	case strings.ContainsAny(name, "\x00\r\n"):
		return "has a control character: choose another name"
	}
	return ""
}
