package peer

import (
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"
)

// QuorumQueue are the arguments of the bench's queues.
var QuorumQueue = amqp091.Table{"x-queue-type": "quorum"}

func rabbitMQ(url string) amqp.Config {
	config := amqp.NewDurableQueueConfig(url)
	config.Queue.Arguments = QuorumQueue
	config.Publish.ConfirmDelivery = true
	return config
}

// RabbitMQPublisher is watermill-amqp's for durable queues, with confirms: without them,
// its default, it does not know whether anything arrives.
func RabbitMQPublisher(url string) (message.Publisher, error) {
	return amqp.NewPublisher(rabbitMQ(url), watermill.NopLogger{})
}

// RabbitMQSubscriber is watermill-amqp's for durable queues.
func RabbitMQSubscriber(url string) (message.Subscriber, error) {
	return amqp.NewSubscriber(rabbitMQ(url), watermill.NopLogger{})
}
