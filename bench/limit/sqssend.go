package limit

import (
	"context"
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"golang.org/x/sync/errgroup"

	"github.com/postbus/postbus/outbox"
)

// sqsBatch is what SQS takes at most in one request.
const sqsBatch = 10

// SQSSend is the limit of publish.sqs: SendMessageBatch, ten messages a request with the
// attributes that watermill-aws writes, and that many requests at once. Two messages of
// one key may overtake each other.
func SQSSend(ctx context.Context, client *sqs.Client, url string, requests int, msgs []*outbox.Message) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(requests)
	for at := 0; at < len(msgs); at += sqsBatch {
		part := msgs[at:min(at+sqsBatch, len(msgs))]
		g.Go(func() error {
			entries := make([]types.SendMessageBatchRequestEntry, len(part))
			for i, m := range part {
				attributes := make(map[string]types.MessageAttributeValue, 6)
				attributes["_watermill_message_uuid"] = sqsText(m.EventID.String())
				m.EachHeader(func(name, value string) { attributes[name] = sqsText(value) })
				entries[i] = types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: aws.String(string(m.Payload)), MessageAttributes: attributes}
			}
			return sendSQS(ctx, client, url, entries)
		})
	}
	return g.Wait()
}

func sendSQS(ctx context.Context, client *sqs.Client, url string, entries []types.SendMessageBatchRequestEntry) error {
	answer, err := client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &url, Entries: entries})
	if err == nil && len(answer.Failed) > 0 {
		err = fmt.Errorf("SQS has refused %d of %d messages: %s", len(answer.Failed), len(entries), aws.ToString(answer.Failed[0].Message))
	}
	return err
}

func sqsText(value string) types.MessageAttributeValue {
	return types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &value}
}
