package limit

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/outbox"
)

// RedisPublish is the limit of publish.redis: go-redis' pipeline of one batch of XADDs, with
// the fields that watermill-redisstream writes. After a failure later entries of the same
// key are added all the same.
func RedisPublish(ctx context.Context, client *redis.Client, msgs []*outbox.Message) error {
	pipeline := client.Pipeline()
	for _, m := range msgs {
		metadata := append(make([]byte, 0, 256), msgpackMap(5))
		m.EachHeader(func(name, value string) { metadata = appendText(appendText(metadata, name), value) })
		pipeline.XAdd(ctx, &redis.XAddArgs{Stream: m.Topic, Values: []any{
			"_watermill_message_uuid", m.EventID.String(), "metadata", metadata, "payload", m.Payload,
		}})
	}
	_, err := pipeline.Exec(ctx)
	return err
}
