package limit

import (
	"context"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/vmihailenco/msgpack/v5"

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

// anySource is as long as what stands before the id in our own header.
const anySource = "00000000-0000-0000-0000-000000000000/1/"

// RedisLoop is the limit of drain.redis: one streaming SELECT, and go-redis' pipeline of
// XADDs with the fields that watermill-redisstream writes. It reads ahead of its sending;
// it has no cursor and no lanes, retries nothing and knows of no failure but the first.
// It gives events a second.
func RedisLoop(ctx context.Context, pool *pgxpool.Pool, client *redis.Client, table, stream string, rows int) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := make(chan []redisEntry, 4)
	read := make(chan error, 1)
	began := time.Now()
	go func() {
		defer close(batches)
		read <- readEntries(ctx, pool, table, rows, batches)
	}()
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
	if err := <-read; err != nil {
		return 0, err
	}
	return float64(rows) / took.Seconds(), nil
}

func readEntries(ctx context.Context, pool *pgxpool.Pool, table string, rows int, out chan<- []redisEntry) error {
	result, err := pool.Query(ctx, `SELECT id, schema_version, event_id, event_type, partition_key, content_type, payload FROM `+table+` LIMIT $1`, rows)
	if err != nil {
		return err
	}
	defer result.Close()
	var batch []redisEntry
	for result.Next() {
		var id int64
		var version int32
		var event uuid.UUID
		var eventType, key, contentType string
		var payload []byte
		if err := result.Scan(&id, &version, &event, &eventType, &key, &contentType, &payload); err != nil {
			return err
		}
		metadata, err := msgpack.Marshal(map[string]string{
			events.HeaderEventType: eventType, events.HeaderSchemaVersion: strconv.Itoa(int(version)), events.HeaderPartitionKey: key,
			events.HeaderContentType: contentType, events.HeaderPosition: anySource + strconv.FormatInt(id, 10),
		})
		if err != nil {
			return err
		}
		if batch = append(batch, redisEntry{event.String(), metadata, payload}); len(batch) == redisBatch {
			select {
			case out <- batch:
			case <-ctx.Done():
				return ctx.Err()
			}
			batch = make([]redisEntry, 0, redisBatch)
		}
	}
	if len(batch) > 0 {
		select {
		case out <- batch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return result.Err()
}
