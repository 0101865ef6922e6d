package stocktest

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onrabbitmq"
)

func TestRabbitMQ(t *testing.T) { brokertest.Run(t, stockRabbitMQ()) }

func TestRabbitMQToOurs(t *testing.T) { brokertest.Exchange(t, stockRabbitMQ(), onrabbitmq.Ours()) }

func TestRabbitMQFromOurs(t *testing.T) { brokertest.Exchange(t, onrabbitmq.Ours(), stockRabbitMQ()) }

func init() { brokertest.Register(stockRabbitMQ()) }

// stockRabbitMQ waits for confirmations, which it does not by default: else a publish says nothing.
func stockRabbitMQ() brokertest.Broker {
	b := onrabbitmq.Server()
	b.Name = "stock amqp"
	b.Capabilities = brokertest.Capabilities{
		Payloads:         brokertest.Yes,
		Headers:          brokertest.Yes,
		OrderPerKey:      brokertest.Yes, // one at a time
		OrderOverMembers: brokertest.NotAssured,
		SurvivesKill:     brokertest.NotAssured, // a race of its connection's goroutines
		PublisherCut:     brokertest.NotAssured,
		SubscriberCut:    brokertest.Yes,
		SubscriberFrozen: brokertest.NotAssured,
		ConsumerKilled:   brokertest.Yes,
		PublisherClose:   brokertest.Yes,
		SubscriberClose:  brokertest.Yes,
		ManyTopics:       brokertest.Yes,
		UnderRelay:       brokertest.Yes,
		NoLeaks:          brokertest.NotAssured,
	}
	config := func(o brokertest.Options) amqp.Config {
		c := amqp.NewDurablePubSubConfig(o.Address, amqp.GenerateQueueNameTopicName)
		c.Publish.ConfirmDelivery = true
		c.Connection.Reconnect = amqp.DefaultReconnectConfig()
		c.Connection.Reconnect.BackoffInitialInterval = 100 * time.Millisecond
		c.Connection.Reconnect.BackoffMaxInterval = time.Second
		return c
	}
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		return amqp.NewPublisher(config(o), watermill.NopLogger{})
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		return amqp.NewSubscriber(config(o), watermill.NopLogger{})
	}
	return b
}
