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
		Client: b.client, Group: shopGroup, Consumer: "shop-1", Logger: logger,
	})
}

// topology is all that the shop needs of Redis.
func (b *redisBroker) topology(topics []string) (t redisstream.Topology) {
	for _, topic := range topics {
		t.Topics = append(t.Topics, redisstream.Topic{Name: topic, Groups: []string{shopGroup}})
	}
	return t
}

func (b *redisBroker) Declare(ctx context.Context, topics []string) error {
	return b.topology(topics).Declare(ctx, b.client)
}

// quiet keeps go-redis from writing between our lines: what goes wrong comes as
// an error, too.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}
