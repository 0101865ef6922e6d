// Package onredis describes Redis Streams to the conformance suite.
package onredis

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/broker/redisstream"
	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/testkit"
)

// Ours is broker/redisstream with one stream for a topic.
func Ours() brokertest.Broker {
	b := ours(0)
	b.Name = "Redis Streams"
	b.Capabilities.OrderOverMembers = brokertest.NotAssured // whoever is free reads on
	return b
}

// Sharded is broker/redisstream with several streams for a topic, which keeps order over consumers.
func Sharded() brokertest.Broker {
	b := ours(shards)
	b.Name = "Redis Streams in shards"
	b.Short = []string{"order", "members", "subscriber cut", "graceful stop"} // the rest is as with one stream
	return b
}

const shards = 4

func ours(shards int) brokertest.Broker {
	b := server(shards)
	b.Capabilities = brokertest.Everything()
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		return redisstream.NewPublisher(redisstream.PublisherConfig{Client: Client(o), Timeout: o.Timeout, Shards: shards})
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		return redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: Client(o), Group: brokertest.Group, Shards: shards,
			MinIdle: o.Failover, MaxInFlight: max(1, o.MaxInFlight/max(1, shards)), // which is for each
			NackDelay: 5 * time.Millisecond, Logger: o.Logger})
	}
	b.Lag = func(ctx context.Context, s message.Subscriber, _ string) (messages int64, oldest time.Duration, err error) {
		lags, err := s.(*redisstream.Subscriber).Lag(ctx)
		for _, l := range lags {
			messages, oldest = messages+l.Entries, max(oldest, l.Oldest)
		}
		return messages, oldest, err
	}
	b.LargestPayload = 1<<20 - 1024 // MaxMessageBytes counts headers too
	b.TooLarge = 1<<20 + 1
	return b
}

// Server is what is true of Redis, whoever publishes and subscribes: a topic is a stream.
func Server() brokertest.Broker { return server(0) }

func server(shards int) brokertest.Broker {
	return brokertest.Broker{
		Address:        func(t testing.TB) string { return testkit.URL(t, testkit.RedisServer) },
		Private:        func(t testing.TB) brokertest.Server { return testkit.PrivateRedis(t) },
		NewTopic:       func(t testing.TB, address string) string { return testkit.Prefix(t) + "topic" },
		LargestPayload: 1 << 20,
		TooLarge:       8 << 20,
		Foreign: func(t testing.TB, address, topic string) {
			client := testkit.RedisAt(t, address)
			for _, stream := range streams(topic, shards) { // wherever the others are
				err := client.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: map[string]any{"temperature": "21.5"}}).Err()
				if err != nil {
					t.Fatal(err)
				}
			}
		},
		RefusedTopic: func(t testing.TB, address string) string {
			name := testkit.Prefix(t) + "no_stream"
			client := testkit.RedisAt(t, address)
			for _, key := range streams(name, shards) {
				if err := client.Set(t.Context(), key, "a string", 0).Err(); err != nil {
					t.Fatal(err)
				}
			}
			return name
		},
		// go-redis keeps one clock for the whole process.
		Idle: []string{"github.com/redis/go-redis/v9/internal/pool.startTimeCacheUpdater", "github.com/redis/go-redis/v9/internal/pool.init.0.func1"},
	}
}

func streams(topic string, shards int) (names []string) {
	if shards == 0 {
		return []string{topic}
	}
	for k := range shards {
		names = append(names, redisstream.ShardStream(topic, k))
	}
	return names
}

// Client is closed with what is made of it.
func Client(o brokertest.Options) *redis.Client {
	config, err := redis.ParseURL(o.Address)
	if err != nil {
		panic(err)
	}
	config.PoolSize = 150 // every Subscribe holds one
	client := redis.NewClient(config)
	o.OnEnd(func() { client.Close() })
	return client
}
