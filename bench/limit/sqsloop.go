package limit

import (
	"context"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/postbus/postbus/events"
)

// SQSLoop is the limit of drain.sqs: one streaming SELECT, and SendMessageBatch, ten
// messages a request with the attributes that watermill-aws writes, and that many requests
// at once. It reads ahead of its sending; it has no cursor and no lanes, keeps no order,
// and knows of no failure but the first. It gives events a second.
func SQSLoop(ctx context.Context, pool *pgxpool.Pool, client *sqs.Client, url string, requests int, table string, rows int) (float64, error) {
	g, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	batches, failure := readAhead(ctx, pool, table, rows, sqsBatch, func(r *row) (types.SendMessageBatchRequestEntry, error) {
		return types.SendMessageBatchRequestEntry{
			Id: aws.String(strconv.FormatInt(r.id, 10)), MessageBody: aws.String(string(r.payload)),
			MessageAttributes: map[string]types.MessageAttributeValue{
				"_watermill_message_uuid": sqsText(r.event.String()), events.HeaderEventType: sqsText(r.eventType),
				events.HeaderSchemaVersion: sqsText(strconv.Itoa(int(r.version))), events.HeaderPartitionKey: sqsText(r.key),
				events.HeaderContentType: sqsText(r.contentType), events.HeaderPosition: sqsText(anySource + strconv.FormatInt(r.id, 10)),
			},
		}, nil
	})
	for range requests {
		g.Go(func() error {
			for entries := range batches {
				if err := sendSQS(ctx, client, url, entries); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := failure(); err != nil {
		return 0, err
	}
	return float64(rows) / took.Seconds(), nil
}
