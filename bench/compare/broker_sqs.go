package compare

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/broker/sqs"
	"github.com/postbus/postbus/outbox"
)

var onSQS = broker{
	name: "sqs", server: harness.SQS, open: openSQS,
	publish: size{10_000, 2000}, drain: size{10_000, 2000}, consume: size{6000, 1000},
	publishNote: fmt.Sprintf("SendMessageBatch of 10 messages, %d requests at once. A standard queue", sqsRequests),
	drainNote:   fmt.Sprintf("SendMessageBatch of 10 messages, %d requests at once", sqsRequests),
	consumeNote: fmt.Sprintf("ReceiveMessage of 10 messages, %d requests at once, as ours has with 64 in flight", sqsReceives),
}

const (
	sqsRequests = 10 // the default of ours
	sqsReceives = 7  // of ten messages: 64 in flight
)

// sqsSite is a standard queue.
type sqsSite struct {
	config aws.Config
	http   *http.Transport
	client *awssqs.Client
	name   string
	url    string
}

func openSQS(ctx context.Context, name string) (site, error) {
	s := &sqsSite{name: name, http: &http.Transport{MaxIdleConnsPerHost: 100}}
	s.config = aws.Config{
		Region:       "eu-central-1",
		Credentials:  credentials.NewStaticCredentialsProvider("bench", "bench", ""),
		BaseEndpoint: aws.String(strings.TrimRight(harness.SQS.URL(), "/")),
		HTTPClient:   &http.Client{Transport: s.http},
	}
	s.client = awssqs.NewFromConfig(s.config)
	queue, err := s.client.CreateQueue(ctx, &awssqs.CreateQueueInput{QueueName: &name})
	if err != nil {
		return nil, err
	}
	s.url = aws.ToString(queue.QueueUrl)
	return s, nil
}

func (s *sqsSite) topic() string { return s.name }
func (s *sqsSite) takesOut()     {}

func (s *sqsSite) empty(ctx context.Context) error {
	_, err := s.client.PurgeQueue(ctx, &awssqs.PurgeQueueInput{QueueUrl: &s.url})
	return err
}

func (s *sqsSite) held(ctx context.Context) (int, error) {
	names := []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible}
	queue, err := s.client.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: &s.url, AttributeNames: names})
	if err != nil {
		return 0, err
	}
	sum := 0
	for _, name := range names {
		n, err := strconv.Atoi(queue.Attributes[string(name)])
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func (s *sqsSite) unread(context.Context) error          { return nil }
func (s *sqsSite) left(ctx context.Context) (int, error) { return s.held(ctx) }

func (s *sqsSite) forgets() int { return 0 }

func (s *sqsSite) remove(ctx context.Context) error {
	defer s.http.CloseIdleConnections()
	_, err := s.client.DeleteQueue(ctx, &awssqs.DeleteQueueInput{QueueUrl: &s.url})
	return err
}

func (s *sqsSite) publisher() (ourPublisher, error) {
	return sqs.NewPublisher(sqs.PublisherConfig{Client: s.client, Requests: sqsRequests})
}

func (s *sqsSite) subscriber(inFlight int) (message.Subscriber, error) {
	return sqs.NewSubscriber(sqs.SubscriberConfig{Client: s.client, MaxInFlight: inFlight, WaitTime: time.Second, Logger: workload.Warnings})
}

func (s *sqsSite) rawPublish(ctx context.Context, msgs []*outbox.Message) error {
	return limit.SQSSend(ctx, s.client, s.url, sqsRequests, msgs)
}

func (s *sqsSite) rawDrain(ctx context.Context, e *harness.Env, rows int) (float64, error) {
	return limit.SQSLoop(ctx, e.Pool, s.client, s.url, sqsRequests, e.Table("outbox"), rows)
}

func (s *sqsSite) rawConsume(ctx context.Context, out chan<- *message.Message) error {
	return limit.SQSReceive(ctx, s.client, s.url, sqsReceives, out)
}

func (s *sqsSite) stockPublisher() (message.Publisher, error)   { return peer.SQSPublisher(s.config) }
func (s *sqsSite) stockSubscriber() (message.Subscriber, error) { return peer.SQSSubscriber(s.config) }
