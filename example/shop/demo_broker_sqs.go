package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/uuid"

	"github.com/postbus/postbus/broker/sqs"
)

// published is what has come out of the queues, and what waits in them.
func (b *sqsBroker) published(ctx context.Context, topics []string) (int64, error) {
	waiting, err := b.waiting(ctx, topics, types.QueueAttributeNameApproximateNumberOfMessages)
	return b.count(topics) + waiting, err
}

func (b *sqsBroker) waiting(ctx context.Context, topics []string, states ...types.QueueAttributeName) (sum int64, err error) {
	for _, topic := range topics {
		url, err := b.url(ctx, sqs.FIFOQueueName(topic))
		if err != nil {
			return 0, err
		}
		got, err := b.client.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: states})
		if err != nil {
			return 0, fmt.Errorf("read the length of queue %s: %w", *url, err)
		}
		for _, state := range states {
			n, err := strconv.ParseInt(got.Attributes[string(state)], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the length of queue %s: %w", *url, err)
			}
			sum += n
		}
	}
	return sum, nil
}

func (b *sqsBroker) url(ctx context.Context, queue string) (*string, error) {
	got, err := b.client.GetQueueUrl(ctx, &awssqs.GetQueueUrlInput{QueueName: &queue})
	if err != nil {
		return nil, fmt.Errorf("find queue %s: %w", queue, err)
	}
	return got.QueueUrl, nil
}

// again gives the copy a deduplication id of its own: with the event's, SQS itself
// would keep it out, for five minutes.
func (b *sqsBroker) again(_ context.Context, topic string) (event string, err error) {
	m := b.first(topic)
	if m != nil {
		m.Metadata["MessageDeduplicationId"] = uuid.NewString()
	}
	return publishAgain(b, m, topic)
}

func (b *sqsBroker) drained(ctx context.Context, topics []string) (bool, error) {
	n, err := b.waiting(ctx, topics, types.QueueAttributeNameApproximateNumberOfMessages, types.QueueAttributeNameApproximateNumberOfMessagesNotVisible)
	return n == 0, err
}

func (b *sqsBroker) remove(ctx context.Context, topics []string) (err error) {
	for _, topic := range topics {
		for _, queue := range []string{sqs.FIFOQueueName(topic), sqs.DeadLetterName(sqs.FIFOQueueName(topic))} {
			url, failed := b.url(ctx, queue)
			if failed == nil {
				_, failed = b.client.DeleteQueue(ctx, &awssqs.DeleteQueueInput{QueueUrl: url})
			}
			err = errors.Join(err, failed)
		}
	}
	return err
}

func (b *sqsBroker) close() {}
