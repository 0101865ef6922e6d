package compare

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/broker/redisstream"
	"github.com/postbus/postbus/outbox"
)

var onRedis = broker{
	name: "redis", server: harness.Redis, open: openRedis,
	publish: size{200_000, 20_000}, drain: size{300_000, 50_000}, consume: size{150_000, 20_000},
	publishNote: "go-redis' pipeline of 1,000 XADDs of the same fields",
	drainNote:   "go-redis' pipeline of 1,000 XADDs of the same fields",
	consumeNote: "go-redis' XREADGROUP of 1,000 entries",
}

// redisSite is a stream.
type redisSite struct {
	client *redis.Client
	name   string
	group  string
	groups int
}

func openRedis(_ context.Context, name string) (site, error) {
	client, err := newRedis()
	if err != nil {
		return nil, err
	}
	return &redisSite{client: client, name: name}, nil
}

func newRedis() (*redis.Client, error) {
	options, err := redis.ParseURL(harness.Redis.URL())
	if err != nil {
		return nil, fmt.Errorf("%s is no address of a Redis: %w", harness.Redis, err)
	}
	return redis.NewClient(options), nil
}

func (s *redisSite) topic() string                   { return s.name }
func (s *redisSite) empty(ctx context.Context) error { return s.client.Del(ctx, s.name).Err() }

func (s *redisSite) held(ctx context.Context) (int, error) {
	n, err := s.client.XLen(ctx, s.name).Result()
	return int(n), err
}

// unread has everybody read in a group that is new.
func (s *redisSite) unread(ctx context.Context) error {
	if s.group != "" {
		if err := s.client.XGroupDestroy(ctx, s.name, s.group).Err(); err != nil {
			return err
		}
	}
	s.groups++
	s.group = fmt.Sprintf("bench-%d", s.groups)
	return s.client.XGroupCreate(ctx, s.name, s.group, "0").Err()
}

func (s *redisSite) left(ctx context.Context) (int, error) {
	groups, err := s.client.XInfoGroups(ctx, s.name).Result()
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		if g.Name == s.group {
			return int(g.Lag + g.Pending), nil
		}
	}
	return 0, fmt.Errorf("the stream has no group %s", s.group)
}

func (s *redisSite) forgets() int { return 0 }

func (s *redisSite) remove(ctx context.Context) error {
	defer s.client.Close()
	return s.empty(ctx)
}

func (s *redisSite) publisher() (ourPublisher, error) {
	return redisstream.NewPublisher(redisstream.PublisherConfig{Client: s.client})
}

func (s *redisSite) subscriber(inFlight int) (message.Subscriber, error) {
	return redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: s.client, Group: s.group, MaxInFlight: inFlight, Logger: workload.Warnings})
}

func (s *redisSite) rawPublish(ctx context.Context, msgs []*outbox.Message) error {
	return limit.RedisPublish(ctx, s.client, msgs)
}

func (s *redisSite) rawDrain(ctx context.Context, e *harness.Env, rows int) (float64, error) {
	return limit.RedisLoop(ctx, e.Pool, s.client, e.Table("outbox"), s.name, rows)
}

func (s *redisSite) rawConsume(ctx context.Context, out chan<- *message.Message) error {
	return limit.RedisRead(ctx, s.client, s.name, s.group, out)
}

// The stock ones close the client that they are given.
func (s *redisSite) stockPublisher() (message.Publisher, error) {
	client, err := newRedis()
	if err != nil {
		return nil, err
	}
	return peer.RedisPublisher(client)
}

func (s *redisSite) stockSubscriber() (message.Subscriber, error) {
	client, err := newRedis()
	if err != nil {
		return nil, err
	}
	return peer.RedisSubscriber(client, s.group)
}
