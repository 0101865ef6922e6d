package limit

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/events"
)

// KafkaClient is a franz-go client that produces as fast as it can with acks=all: what is
// produced is sent at once, compressed as ours is.
func KafkaClient(brokers []string) (*kgo.Client, error) {
	return kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DisableClientMetrics(),
		kgo.ProducerBatchCompression(kgo.Lz4Compression()), kgo.ProducerLinger(0))
}

// KafkaLoop is the limit of drain.kafka: one streaming SELECT, and franz-go's ProduceSync
// of a thousand records with the headers that watermill-kafka writes. It reads ahead of
// its sending; it has no cursor and no lanes, and knows of no failure but the first. It
// gives events a second.
func KafkaLoop(ctx context.Context, pool *pgxpool.Pool, client *kgo.Client, table, topic string, rows int) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	batches, failure := readAhead(ctx, pool, table, rows, 1000, func(r *row) (*kgo.Record, error) {
		return &kgo.Record{Topic: topic, Key: []byte(r.key), Value: r.payload, Headers: []kgo.RecordHeader{
			{Key: "_watermill_message_uuid", Value: []byte(r.event.String())},
			{Key: events.HeaderEventType, Value: []byte(r.eventType)},
			{Key: events.HeaderSchemaVersion, Value: strconv.AppendInt(nil, int64(r.version), 10)},
			{Key: events.HeaderPartitionKey, Value: []byte(r.key)},
			{Key: events.HeaderContentType, Value: []byte(r.contentType)},
			{Key: events.HeaderPosition, Value: strconv.AppendInt([]byte(anySource), r.id, 10)},
		}}, nil
	})
	for batch := range batches {
		if err := client.ProduceSync(ctx, batch...).FirstErr(); err != nil {
			return 0, err
		}
	}
	took := time.Since(began)
	if err := failure(); err != nil {
		return 0, err
	}
	return float64(rows) / took.Seconds(), nil
}
