package limit

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/events"
)

// redisEntry is one row on its way to Redis, encoded.
type redisEntry struct {
	id       string
	metadata []byte
	payload  []byte
}

// redisBatch is how many entries go into one pipeline.
const redisBatch = 1000

// RedisLoop is the limit of drain.redis: one streaming SELECT, and go-redis' pipeline of
// XADDs with the fields that watermill-redisstream writes. It reads ahead of its sending;
// it has no cursor and no lanes, retries nothing and knows of no failure but the first.
// It gives events a second.
func RedisLoop(ctx context.Context, pool *pgxpool.Pool, client *redis.Client, table, stream string, rows int) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	batches, failure := readAhead(ctx, pool, table, rows, redisBatch, redisEntryOf)
	for batch := range batches {
		pipeline := client.Pipeline()
		for i := range batch {
			pipeline.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []any{
				"_watermill_message_uuid", batch[i].id, "metadata", batch[i].metadata, "payload", batch[i].payload,
			}})
		}
		if _, err := pipeline.Exec(ctx); err != nil {
			return 0, err
		}
	}
	took := time.Since(began)
	if err := failure(); err != nil {
		return 0, err
	}
	return float64(rows) / took.Seconds(), nil
}

func redisEntryOf(r *row) (redisEntry, error) {
	metadata := append(make([]byte, 0, 256), msgpackMap(5))
	for _, header := range [...][2]string{
		{events.HeaderEventType, r.eventType}, {events.HeaderSchemaVersion, strconv.Itoa(int(r.version))}, {events.HeaderPartitionKey, r.key},
		{events.HeaderContentType, r.contentType}, {events.HeaderPosition, anySource + strconv.FormatInt(r.id, 10)},
	} {
		metadata = appendText(appendText(metadata, header[0]), header[1])
	}
	return redisEntry{r.event.String(), metadata, r.payload}, nil
}
