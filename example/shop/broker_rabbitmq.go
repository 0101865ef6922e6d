package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/broker/rabbitmq"
)

// rabbitBroker is RabbitMQ: a topic is a fanout exchange, and the shop has a
// quorum queue bound to it.
type rabbitBroker struct {
	server rabbitmq.ConnectionConfig
	conn   *amqp.Connection // for what adapters don't do: queues are looked into
	*witness
}

func openRabbitMQ(_ context.Context, address, _ string) (broker, error) {
	uri, err := amqp.ParseURI(address)
	if err != nil {
		return nil, fmt.Errorf("POSTBUS_RABBITMQ_URL is no address of a RabbitMQ server: %w", errNoServers)
	}
	conn, err := amqp.DialConfig(address, amqp.Config{Dial: amqp.DefaultDial(5 * time.Second)})
	if err != nil {
		return nil, noAnswer("RabbitMQ", net.JoinHostPort(uri.Host, fmt.Sprint(uri.Port)), err)
	}
	return &rabbitBroker{rabbitmq.ConnectionConfig{URL: address}, conn, &witness{}}, nil
}

func (b *rabbitBroker) Publisher() (message.Publisher, error) {
	return rabbitmq.NewPublisher(rabbitmq.PublisherConfig{Connection: b.server})
}

func (b *rabbitBroker) Subscriber(logger *slog.Logger) (message.Subscriber, error) {
	s, err := rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{Connection: b.server, Group: shopGroup, Logger: logger})
	return b.beside(s), err
}

// topology is all that the shop needs of RabbitMQ.
func (b *rabbitBroker) topology(topics []string) (t rabbitmq.Topology) {
	for _, topic := range topics {
		t.Exchanges = append(t.Exchanges, rabbitmq.Exchange{Name: topic, Kind: rabbitmq.Fanout})
		t.Queues = append(t.Queues, rabbitmq.Queue{Name: queueOf(topic), Bindings: []rabbitmq.Binding{{Exchange: topic}}})
	}
	return t
}

func queueOf(topic string) string { return topic + "_" + shopGroup }

func (b *rabbitBroker) Declare(ctx context.Context, topics []string) error {
	if err := rabbitmq.Declare(ctx, b.server, b.topology(topics)); err != nil {
		return fmt.Errorf("declare the shop's queues: %w", err)
	}
	return nil
}
