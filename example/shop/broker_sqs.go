package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/postbus/postbus/broker/sqs"
)

// sqsBroker is SQS: a topic is a FIFO queue, since order is wanted.
type sqsBroker struct {
	client *awssqs.Client
	*witness
}

// openSQS makes a client for a server on this machine, which asks for nothing. For
// AWS itself it is awssqs.NewFromConfig, with what config.LoadDefaultConfig returns.
func openSQS(ctx context.Context, address, _ string) (broker, error) {
	client := awssqs.New(awssqs.Options{
		BaseEndpoint: &address, Region: "eu-west-1",
		Credentials: credentials.NewStaticCredentialsProvider("any", "any", ""),
	})
	if _, err := client.ListQueues(ctx, &awssqs.ListQueuesInput{MaxResults: aws.Int32(1)}); err != nil {
		return nil, noAnswer("SQS", address, err)
	}
	return &sqsBroker{client, &witness{}}, nil
}

func (b *sqsBroker) Publisher() (message.Publisher, error) {
	return sqs.NewPublisher(sqs.PublisherConfig{Client: b.client, QueueName: sqs.FIFOQueueName})
}

func (b *sqsBroker) Subscriber(logger *slog.Logger) (message.Subscriber, error) {
	s, err := sqs.NewSubscriber(sqs.SubscriberConfig{
		Client: b.client, QueueName: sqs.FIFOQueueName, Logger: logger,
		WaitTime: 2 * time.Second, // closing waits for it; in production the default costs less
	})
	return b.beside(s), err
}

// topology is all that the shop needs of SQS.
func (b *sqsBroker) topology(topics []string) (t sqs.Topology) {
	for _, topic := range topics {
		t.Queues = append(t.Queues, sqs.Queue{Name: sqs.FIFOQueueName(topic)})
	}
	return t
}

func (b *sqsBroker) Declare(ctx context.Context, topics []string) error {
	return b.topology(topics).Declare(ctx, sqs.Clients{SQS: b.client, Logger: slog.New(slog.DiscardHandler)})
}
