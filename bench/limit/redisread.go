package limit

import (
	"context"
	"errors"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// RedisRead is the limit of consume.redis: go-redis' XREADGROUP of a thousand entries at
// a time, carried through Watermill's contract. Every entry becomes a message, goes through
// the channel, and its ack is waited for; then the batch is acknowledged by one XACK. It
// keeps no order of keys, knows no nack, and claims nothing. It ends with ctx.
func RedisRead(ctx context.Context, client *redis.Client, stream, group string, out chan<- *message.Message) error {
	var batch []*message.Message
	var ids []string
	for ctx.Err() == nil {
		read, err := client.XReadGroup(ctx, &redis.XReadGroupArgs{Group: group, Consumer: "limit", Streams: []string{stream, ">"},
			Count: 1000, Block: 100 * time.Millisecond}).Result()
		switch {
		case errors.Is(err, redis.Nil), ctx.Err() != nil:
			continue
		case err != nil:
			return err
		}
		batch, ids = batch[:0], ids[:0]
		for _, entry := range read[0].Messages {
			id, _ := entry.Values["_watermill_message_uuid"].(string)
			payload, _ := entry.Values["payload"].(string)
			metadata, _ := entry.Values["metadata"].(string)
			m := message.NewMessage(id, []byte(payload))
			m.Metadata = make(message.Metadata, 5)
			if err := decodeMap(metadata, m.Metadata); err != nil {
				return err
			}
			hand(ctx, out, m)
			batch, ids = append(batch, m), append(ids, entry.ID)
		}
		if acked(ctx, batch) {
			if err := client.XAck(context.WithoutCancel(ctx), stream, group, ids...).Err(); err != nil {
				return err
			}
		}
	}
	return nil
}
