package redisstream

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/testkit"
)

func TestConformance(t *testing.T) { brokertest.Run(t, conformance) }

func init() { brokertest.Register(conformance) }

var conformance = brokertest.Broker{
	Name:           "Redis Streams",
	Capabilities:   capabilities(),
	Address:        func(t testing.TB) string { return testkit.URL(t, testkit.RedisServer) },
	Private:        func(t testing.TB) brokertest.Server { return testkit.PrivateRedis(t) },
	NewTopic:       func(t testing.TB, address string) string { return testkit.Prefix(t) + "topic" },
	LargestPayload: 1<<20 - 1024, // of MaxMessageBytes, which counts headers too
	TooLarge:       1<<20 + 1,
	Publisher: func(o brokertest.Options) (message.Publisher, error) {
		return NewPublisher(PublisherConfig{Client: conformanceClient(o), Timeout: o.Timeout})
	},
	Subscriber: func(o brokertest.Options) (message.Subscriber, error) {
		return NewSubscriber(SubscriberConfig{Client: conformanceClient(o), Group: brokertest.Group, MinIdle: o.Failover, Logger: o.Logger})
	},
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

func capabilities() brokertest.Capabilities {
	c := brokertest.Everything()
	c.InFlight, c.OrderOverMembers, c.Lag = brokertest.Sometimes, brokertest.Sometimes, brokertest.Sometimes
	return c
}

func conformanceClient(o brokertest.Options) *redis.Client {
	config, err := redis.ParseURL(o.Address)
	if err != nil {
		panic(err)
	}
	config.PoolSize = 150 // every Subscribe holds one
	client := redis.NewClient(config)
	o.OnEnd(func() { client.Close() })
	return client
}
