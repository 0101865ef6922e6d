package peer

import (
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// RedisPublisher is watermill-redisstream's with its defaults. It closes the client.
func RedisPublisher(client *redis.Client) (message.Publisher, error) {
	return redisstream.NewPublisher(redisstream.PublisherConfig{Client: client}, watermill.NopLogger{})
}

// RedisSubscriber is watermill-redisstream's, but for its first request, which would wait
// without limit. It closes the client.
func RedisSubscriber(client *redis.Client, group string) (message.Subscriber, error) {
	return redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: client, ConsumerGroup: group,
		DisableIndefiniteInitialBlock: true}, watermill.NopLogger{})
}
