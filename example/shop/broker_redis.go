package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/broker/redisstream"
)

// redisBroker is Redis: a topic is a stream.
type redisBroker struct {
	client *redis.Client
	prefix string
}

func openRedis(ctx context.Context, address, prefix string) (broker, error) {
	options, err := redis.ParseURL(address)
	if err != nil {
		return nil, fmt.Errorf("POSTBUS_REDIS_URL is no address of a Redis server: %w", errNoServers)
	}
	options.ContextTimeoutEnabled = true
	redis.SetLogger(quiet{})
	client := redis.NewClient(options)
	if err := client.Ping(ctx).Err(); err != nil {
		_ = client.Close()
		return nil, noAnswer("Redis", options.Addr, err)
	}
	return &redisBroker{client, prefix}, nil
}

func (b *redisBroker) Publisher() (message.Publisher, error) {
	return redisstream.NewPublisher(redisstream.PublisherConfig{Client: b.client})
}

func (b *redisBroker) Subscriber(logger *slog.Logger) (message.Subscriber, error) {
	return redisstream.NewSubscriber(redisstream.SubscriberConfig{
		Client: b.client, Group: "shop", Consumer: "shop-1", Logger: logger,
	})
}

// Declare has nothing to do: a stream begins with its first entry.
func (b *redisBroker) Declare(context.Context, []string) error { return nil }

// quiet keeps go-redis from writing between our lines: what goes wrong comes as
// an error, too.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}
