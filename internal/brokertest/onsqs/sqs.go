// Package onsqs describes SQS to the conformance suite.
package onsqs

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/broker/sqs"
	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/testkit"
)

// FIFO is broker/sqs with FIFO queues, which keep order.
func FIFO() brokertest.Broker {
	b := ours()
	b.Name = "SQS FIFO"
	b.NewTopic = func(t testing.TB, address string) string {
		return newQueue(t, address, testkit.Name(t)+".fifo", map[string]string{string(types.QueueAttributeNameFifoQueue): "true"})
	}
	return b
}

// Standard is broker/sqs with standard queues.
func Standard() brokertest.Broker {
	b := ours()
	b.Name = "SQS"
	b.Short = []string{"subscriber cut", "graceful stop"} // the rest is as with FIFO queues
	b.Capabilities.OrderPerKey = brokertest.NotAssured
	b.Capabilities.OrderOverMembers = brokertest.NotAssured
	return b
}

func ours() brokertest.Broker {
	b := Server()
	b.Capabilities = brokertest.Everything()
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		return sqs.NewPublisher(sqs.PublisherConfig{Client: Client(o), Timeout: o.Timeout})
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		return sqs.NewSubscriber(sqs.SubscriberConfig{Client: Client(o), MaxInFlight: o.MaxInFlight, WaitTime: time.Second,
			Visibility: 2 * o.Failover, NackDelay: sqs.AtOnce, Logger: o.Logger})
	}
	b.Lag = func(ctx context.Context, s message.Subscriber, _ string) (messages int64, oldest time.Duration, err error) {
		lags, err := s.(*sqs.Subscriber).Lag(ctx)
		for _, l := range lags {
			messages, oldest = messages+l.Messages, max(oldest, l.Oldest)
		}
		return messages, oldest, err
	}
	return b
}

// Server is what is true of SQS, whoever publishes and subscribes: a topic is a queue.
func Server() brokertest.Broker {
	return brokertest.Broker{
		Address: testkit.SQS,
		Private: func(t testing.TB) brokertest.Server { return testkit.PrivateElasticMQ(t) },
		NewTopic: func(t testing.TB, address string) string {
			return newQueue(t, address, testkit.Name(t), map[string]string{})
		},
		Emulated:       "ElasticMQ reads what it has kept in no particular order, and before it has done so it answers that there is no queue",
		LargestPayload: 700 << 10, // of 1 MiB, in base 64
		TooLarge:       1<<20 + 1,
		// It says that its body is in an encoding that nobody knows.
		Foreign: func(t testing.TB, address, topic string) {
			client := Client(brokertest.Options{Address: address, OnEnd: t.Cleanup})
			queue, err := client.GetQueueUrl(t.Context(), &awssqs.GetQueueUrlInput{QueueName: &topic})
			if err != nil {
				t.Fatal(err)
			}
			in := &awssqs.SendMessageInput{QueueUrl: queue.QueueUrl, MessageBody: aws.String("21.5"), MessageAttributes: map[string]types.MessageAttributeValue{
				"postbus_encoding": {DataType: aws.String("String"), StringValue: aws.String("rot13")}}}
			if strings.HasSuffix(topic, ".fifo") {
				in.MessageGroupId, in.MessageDeduplicationId = aws.String("key"), aws.String("foreign")
			}
			if _, err := client.SendMessage(t.Context(), in); err != nil {
				t.Fatal(err)
			}
		},
		RefusedTopic: func(t testing.TB, _ string) string { return testkit.Name(t) }, // nothing is created by being named
	}
}

func newQueue(t testing.TB, address, name string, attributes map[string]string) string {
	t.Helper()
	attributes[string(types.QueueAttributeNameVisibilityTimeout)] = "2"
	client := Client(brokertest.Options{Address: address, OnEnd: t.Cleanup})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	queue, err := client.CreateQueue(ctx, &awssqs.CreateQueueInput{QueueName: &name, Attributes: attributes})
	if err != nil {
		t.Fatalf("create queue %s: %v", name, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		client.DeleteQueue(ctx, &awssqs.DeleteQueueInput{QueueUrl: queue.QueueUrl}) // the server may have been killed
	})
	return name
}

// Client has HTTP connections of its own, which are closed with what is made of it.
func Client(o brokertest.Options) *awssqs.Client { return awssqs.NewFromConfig(Config(o)) }

// Config is that of a client for the address in the options.
func Config(o brokertest.Options) aws.Config {
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	o.OnEnd(transport.CloseIdleConnections)
	return aws.Config{
		Region:       "eu-central-1",
		Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
		BaseEndpoint: aws.String(strings.TrimRight(o.Address, "/")),
		HTTPClient:   &http.Client{Transport: transport},
	}
}
