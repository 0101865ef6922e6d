package main

import (
	"context"
	"errors"
	"fmt"

	watermillredis "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/handlers"
)

func (b *redisBroker) published(ctx context.Context, topics []string) (sum int64, err error) {
	for _, stream := range topics {
		n, err := b.client.XLen(ctx, stream).Result()
		if err != nil {
			return 0, fmt.Errorf("read the length of stream %s: %w", stream, err)
		}
		sum += n
	}
	return sum, nil
}

func (b *redisBroker) again(ctx context.Context, stream string) (event string, err error) {
	entries, err := b.client.XRangeN(ctx, stream, "-", "+", 1).Result()
	if err == nil && len(entries) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", fmt.Errorf("read the first entry of stream %s: %w", stream, err)
	}
	if err := b.client.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: entries[0].Values}).Err(); err != nil {
		return "", fmt.Errorf("add an entry to stream %s: %w", stream, err)
	}
	return fmt.Sprint(entries[0].Values[watermillredis.UUIDHeaderKey]), nil
}

func (b *redisBroker) drained(ctx context.Context, topics []string) (bool, error) {
	for _, stream := range topics {
		if n, err := b.client.Exists(ctx, stream).Result(); err != nil || n == 0 {
			if err != nil {
				return false, err
			}
			continue
		}
		info, err := b.client.XInfoStream(ctx, stream).Result()
		if err != nil {
			return false, err
		}
		groups, err := b.client.XInfoGroups(ctx, stream).Result()
		if err != nil {
			return false, err
		}
		for _, group := range groups {
			if group.Pending > 0 || group.LastDeliveredID != info.LastGeneratedID {
				return false, nil
			}
		}
	}
	return true, nil
}

// readBack decodes with Watermill's own decoder, so that ours is not its own
// witness.
func (b *redisBroker) readBack(ctx context.Context, topics []string, found func(finding) error) error {
	for _, stream := range topics {
		entries, err := b.client.XRange(ctx, stream, "-", "+").Result()
		if err != nil {
			return fmt.Errorf("read stream %s back: %w", stream, err)
		}
		for _, entry := range entries {
			m, err := watermillredis.DefaultMarshallerUnmarshaller{}.Unmarshal(entry.Values)
			if err != nil {
				return fmt.Errorf("read entry %s of stream %s back: %w", entry.ID, stream, err)
			}
			if err := found(finding{stream, entry.ID, m.Payload, m.Metadata[handlers.HeaderPoisonHandler]}); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove takes all keys of the run, whatever topics there were.
func (b *redisBroker) remove(ctx context.Context, _ []string) (err error) {
	keys := b.client.Scan(ctx, 0, b.prefix+"*", 1000).Iterator()
	for keys.Next(ctx) {
		if delErr := b.client.Del(ctx, keys.Val()).Err(); delErr != nil {
			err = errors.Join(err, fmt.Errorf("remove stream %s: %w", keys.Val(), delErr))
		}
	}
	if keys.Err() != nil {
		err = errors.Join(err, fmt.Errorf("remove the streams %s*: %w", b.prefix, keys.Err()))
	}
	return err
}

func (b *redisBroker) close() { _ = b.client.Close() } // nothing is under way on it
