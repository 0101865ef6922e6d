package testkit

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Redis is a client of the shared Redis, closed when the test ends.
func Redis(t testing.TB, options ...func(*redis.Options)) *redis.Client {
	t.Helper()
	return RedisAt(t, URL(t, RedisServer), options...)
}

// RedisAt is Redis for any address, such as that of a Proxy.
func RedisAt(t testing.TB, address string, options ...func(*redis.Options)) *redis.Client {
	t.Helper()
	config, err := redis.ParseURL(address)
	if err != nil {
		t.Fatalf("connect to Redis for the test: %v", err)
	}
	config.PoolSize = 8 // blocking reads hold a connection each
	for _, option := range options {
		option(config)
	}
	client := redis.NewClient(config)
	t.Cleanup(func() { client.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	if err := client.Ping(ctx).Err(); err != nil {
		t.Fatalf("connect to Redis for the test: %v; `make servers-status` shows what runs", err)
	}
	return client
}

// Prefix is what the names of the test's streams and keys in Redis begin
// with. All keys that do are removed when the test ends.
func Prefix(t testing.TB) string {
	t.Helper()
	prefix := uniqueName(t) + "_"
	address := URL(t, RedisServer)
	t.Cleanup(func() {
		if err := removeKeys(address, prefix); err != nil {
			t.Errorf("remove the Redis keys that begin with %s: %v", prefix, err)
		}
	})
	return prefix
}

func removeKeys(address, prefix string) error {
	config, err := redis.ParseURL(address)
	if err != nil {
		return err
	}
	client := redis.NewClient(config)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	var keys []string
	found := client.Scan(ctx, 0, prefix+"*", 1000).Iterator() // the prefix holds no pattern characters
	for found.Next(ctx) {
		keys = append(keys, found.Val())
	}
	if err := found.Err(); err != nil || len(keys) == 0 {
		return err
	}
	return client.Unlink(ctx, keys...).Err()
}
