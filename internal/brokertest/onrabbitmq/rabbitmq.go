// Package onrabbitmq describes RabbitMQ to the conformance suite.
package onrabbitmq

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/broker/rabbitmq"
	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/testkit"
)

const maxMessageBytes = 1 << 20

// Ours is broker/rabbitmq with a quorum queue and single active consumer: the set-up that keeps order.
func Ours() brokertest.Broker {
	b := Server()
	b.Name = "RabbitMQ"
	b.Capabilities = brokertest.Everything()
	b.NewTopic = func(t testing.TB, address string) string {
		t.Helper()
		name := testkit.Name(t)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := rabbitmq.Declare(ctx, rabbitmq.ConnectionConfig{URL: address}, topology(name)); err != nil {
			t.Fatalf("declare exchange and queue %s: %v", name, err)
		}
		t.Cleanup(func() { remove(address, name, name, name+".dead") })
		return name
	}
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		return rabbitmq.NewPublisher(rabbitmq.PublisherConfig{Connection: connection(o), Timeout: o.Timeout, MaxMessageBytes: maxMessageBytes, Logger: o.Logger})
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		return rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{Connection: connection(o), MaxInFlight: o.MaxInFlight,
			Prefetch: 2 * o.MaxInFlight, NackDelay: 5 * time.Millisecond, Logger: o.Logger})
	}
	b.Lag = func(ctx context.Context, s message.Subscriber, _ string) (messages int64, oldest time.Duration, err error) {
		lags, err := s.(*rabbitmq.Subscriber).Lag(ctx)
		for _, l := range lags {
			messages, oldest = messages+l.Messages, max(oldest, l.Oldest)
		}
		return messages, oldest, err
	}
	b.LargestPayload = maxMessageBytes - 1024 // which counts headers too
	b.TooLarge = maxMessageBytes + 1
	return b
}

func topology(name string) rabbitmq.Topology {
	return rabbitmq.Topology{
		Exchanges: []rabbitmq.Exchange{{Name: name, Kind: rabbitmq.Fanout}},
		Queues:    []rabbitmq.Queue{{Name: name, Bindings: []rabbitmq.Binding{{Exchange: name}}, SingleActiveConsumer: true}},
	}
}

func connection(o brokertest.Options) rabbitmq.ConnectionConfig {
	return rabbitmq.ConnectionConfig{URL: o.Address, Heartbeat: 2 * time.Second}
}

// Server is what is true of RabbitMQ, whoever publishes and subscribes: a topic is a fanout
// exchange, and the queue of the suite's group has its name.
func Server() brokertest.Broker {
	return brokertest.Broker{
		Address: func(t testing.TB) string { return testkit.RabbitMQ(t) },
		Private: func(t testing.TB) brokertest.Server { return testkit.PrivateRabbitMQ(t) },
		NewTopic: func(t testing.TB, address string) string {
			t.Helper()
			name := testkit.Name(t)
			on(t, address, func(ch *amqp.Channel) error {
				if err := ch.ExchangeDeclare(name, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
					return err
				}
				if _, err := ch.QueueDeclare(name, true, false, false, false, nil); err != nil {
					return err
				}
				return ch.QueueBind(name, "", name, false, nil)
			})
			t.Cleanup(func() { remove(address, name, name) })
			return name
		},
		LargestPayload: 1 << 20,
		TooLarge:       8 << 20,
		// A header of another type than text, which the format does not know.
		Foreign: func(t testing.TB, address, topic string) {
			on(t, address, func(ch *amqp.Channel) error {
				return ch.PublishWithContext(t.Context(), topic, "", false, false,
					amqp.Publishing{Headers: amqp.Table{"count": int32(5)}, Body: []byte("21.5"), DeliveryMode: amqp.Persistent})
			})
		},
		// An exchange that no queue is bound to.
		RefusedTopic: func(t testing.TB, address string) string {
			name := testkit.Name(t)
			on(t, address, func(ch *amqp.Channel) error {
				return ch.ExchangeDeclare(name, amqp.ExchangeFanout, true, false, false, false, nil)
			})
			t.Cleanup(func() { remove(address, name) })
			return name
		},
	}
}

func on(t testing.TB, address string, do func(*amqp.Channel) error) {
	t.Helper()
	conn, err := amqp.Dial(address)
	if err != nil {
		t.Fatalf("connect to RabbitMQ for the test: %v", err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err == nil {
		err = do(ch)
	}
	if err != nil {
		t.Fatalf("set RabbitMQ up for the test: %v", err)
	}
}

// remove is for servers that may have been killed: what is left there nobody minds.
func remove(address, exchange string, queues ...string) {
	conn, err := amqp.Dial(address)
	if err != nil {
		return
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return
	}
	ch.ExchangeDelete(exchange, false, false)
	for _, q := range queues {
		ch.QueueDelete(q, false, false, false)
	}
}
