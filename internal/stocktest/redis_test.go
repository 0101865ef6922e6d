package stocktest

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onredis"
)

func TestRedis(t *testing.T) { brokertest.Run(t, stockRedis()) }

func TestRedisToOurs(t *testing.T) { brokertest.Exchange(t, stockRedis(), onredis.Ours()) }

func TestRedisFromOurs(t *testing.T) { brokertest.Exchange(t, onredis.Ours(), stockRedis()) }

func init() { brokertest.Register(stockRedis()) }

func stockRedis() brokertest.Broker {
	b := onredis.Server()
	b.Name = "stock redisstream"
	b.Capabilities = brokertest.Capabilities{
		Payloads:         brokertest.Yes,
		Headers:          brokertest.Yes,
		OrderPerKey:      brokertest.Yes, // one at a time
		OrderOverMembers: brokertest.NotAssured,
		SurvivesKill:     brokertest.Yes,
		PublisherCut:     brokertest.Yes,
		SubscriberCut:    brokertest.Yes,
		PublisherFrozen:  brokertest.Yes,
		SubscriberFrozen: brokertest.Yes,
		ConsumerKilled:   brokertest.Yes,
		PublisherClose:   brokertest.Yes,
		SubscriberClose:  brokertest.Yes,
		ManyTopics:       brokertest.Yes,
		UnderRelay:       brokertest.Yes,
		NoLeaks:          brokertest.Yes,
	}
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		return redisstream.NewPublisher(redisstream.PublisherConfig{Client: onredis.Client(o)}, nil)
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		return redisstream.NewSubscriber(redisstream.SubscriberConfig{
			Client: onredis.Client(o), ConsumerGroup: brokertest.Group, NackResendSleep: 10 * time.Millisecond,
			MaxIdleTime: o.Failover, ClaimInterval: o.Failover / 2, DisableIndefiniteInitialBlock: true,
		}, nil)
	}
	return b
}
