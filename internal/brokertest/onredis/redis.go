// Package onredis describes Redis Streams to the conformance suite.
package onredis

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/broker/redisstream"
	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/testkit"
)

// Ours is broker/redisstream.
func Ours() brokertest.Broker {
	b := Server()
	b.Name = "Redis Streams"
	b.Capabilities = brokertest.Everything()
	b.Capabilities.OrderOverMembers = brokertest.NotAssured // whoever is free reads on
	b.Capabilities.Lag = brokertest.NotAssured
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		return redisstream.NewPublisher(redisstream.PublisherConfig{Client: Client(o), Timeout: o.Timeout})
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		return redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: Client(o), Group: brokertest.Group,
			MinIdle: o.Failover, MaxInFlight: o.MaxInFlight, NackDelay: 5 * time.Millisecond, Logger: o.Logger})
	}
	b.LargestPayload = 1<<20 - 1024 // MaxMessageBytes counts headers too
	b.TooLarge = 1<<20 + 1
	return b
}

// Server is what is true of Redis, whoever publishes and subscribes.
func Server() brokertest.Broker {
	return brokertest.Broker{
		Address:        func(t testing.TB) string { return testkit.URL(t, testkit.RedisServer) },
		Private:        func(t testing.TB) brokertest.Server { return testkit.PrivateRedis(t) },
		NewTopic:       func(t testing.TB, address string) string { return testkit.Prefix(t) + "topic" },
		LargestPayload: 1 << 20,
		TooLarge:       8 << 20,
		Foreign: func(t testing.TB, address, topic string) {
			err := testkit.RedisAt(t, address).XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: map[string]any{"temperature": "21.5"}}).Err()
			if err != nil {
				t.Fatal(err)
			}
		},
		RefusedTopic: func(t testing.TB, address string) string {
			name := testkit.Prefix(t) + "no_stream"
			if err := testkit.RedisAt(t, address).Set(t.Context(), name, "a string", 0).Err(); err != nil {
				t.Fatal(err)
			}
			return name
		},
		// go-redis keeps one clock for the whole process.
		Idle: []string{"github.com/redis/go-redis/v9/internal/pool.startTimeCacheUpdater", "github.com/redis/go-redis/v9/internal/pool.init.0.func1"},
	}
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
