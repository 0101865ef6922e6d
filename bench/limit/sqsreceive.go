package limit

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"golang.org/x/sync/errgroup"
)

// SQSReceive is the limit of consume.sqs: ReceiveMessage of ten messages, that many
// requests at once, carried through Watermill's contract. Every message goes through the
// channel, and its ack is waited for; then the ten are deleted by one DeleteMessageBatch,
// while the next ten come. It keeps no order of keys, knows no nack, and renews nothing. It
// ends with ctx.
func SQSReceive(ctx context.Context, client *sqs.Client, url string, requests int, out chan<- *message.Message) error {
	var g, deleting errgroup.Group
	deleting.SetLimit(requests)
	for range requests {
		g.Go(func() error {
			for ctx.Err() == nil {
				// Not broken off: SQS would give messages to nobody, and hide them.
				answer, err := client.ReceiveMessage(context.WithoutCancel(ctx), &sqs.ReceiveMessageInput{QueueUrl: &url, MaxNumberOfMessages: sqsBatch,
					WaitTimeSeconds: 1, MessageAttributeNames: []string{"All"}})
				if err != nil {
					return err
				}
				if entries := handSQS(ctx, answer.Messages, out); len(entries) > 0 {
					deleting.Go(func() error { return deleteSQS(context.WithoutCancel(ctx), client, url, entries) })
				}
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), deleting.Wait())
}

// handSQS gives what there is to delete.
func handSQS(ctx context.Context, received []types.Message, out chan<- *message.Message) []types.DeleteMessageBatchRequestEntry {
	batch := make([]*message.Message, len(received))
	deletions := make([]types.DeleteMessageBatchRequestEntry, len(received))
	for i, r := range received {
		m := message.NewMessage("", []byte(aws.ToString(r.Body)))
		m.Metadata = make(message.Metadata, len(r.MessageAttributes))
		for name, value := range r.MessageAttributes {
			if name == "_watermill_message_uuid" {
				m.UUID = aws.ToString(value.StringValue)
			} else {
				m.Metadata[name] = aws.ToString(value.StringValue)
			}
		}
		hand(ctx, out, m)
		batch[i] = m
		deletions[i] = types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: r.ReceiptHandle}
	}
	if !acked(ctx, batch) {
		return nil
	}
	return deletions
}

func deleteSQS(ctx context.Context, client *sqs.Client, url string, entries []types.DeleteMessageBatchRequestEntry) error {
	answer, err := client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &url, Entries: entries})
	if err == nil && len(answer.Failed) > 0 {
		err = fmt.Errorf("SQS has refused %d of %d deletions: %s", len(answer.Failed), len(entries), aws.ToString(answer.Failed[0].Message))
	}
	return err
}
