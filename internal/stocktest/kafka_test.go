package stocktest

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/brokertest/onkafka"
)

func TestKafka(t *testing.T) { brokertest.Run(t, stockKafka()) }

func TestKafkaToOurs(t *testing.T) { brokertest.Exchange(t, stockKafka(), onkafka.Ours()) }

func TestKafkaFromOurs(t *testing.T) { brokertest.Exchange(t, onkafka.Ours(), stockKafka()) }

func init() { brokertest.Register(stockKafka()) }

func stockKafka() brokertest.Broker {
	b := onkafka.Server()
	b.Name = "stock kafka"
	b.Capabilities = brokertest.Capabilities{
		Payloads:         brokertest.Yes,
		Headers:          brokertest.Yes,
		HoldsBack:        brokertest.Yes,        // it stops at the first failure, of whatever key
		OrderPerKey:      brokertest.Yes,        // one message of a partition at a time
		OrderOverMembers: brokertest.NotAssured, // an ack after a rebalance is discarded
		SurvivesKill:     brokertest.Yes,
		PublisherCut:     brokertest.Yes,
		SubscriberCut:    brokertest.Yes,
		SubscriberFrozen: brokertest.NotAssured,
		ConsumerKilled:   brokertest.Yes,
		Foreign:          brokertest.Yes,        // without an id
		PublisherClose:   brokertest.NotAssured, // a publish meanwhile may panic
		SubscriberClose:  brokertest.Yes,
		ManyTopics:       brokertest.Yes,
		UnderRelay:       brokertest.Yes,
		NoLeaks:          brokertest.NotAssured,
	}
	b.RepeatsPerFault = 2000 // what was handled in the last second is not committed yet
	b.Idle = []string{"github.com/rcrowley/go-metrics.(*meterArbiter).tick"}
	byKey := kafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) {
		return m.Metadata.Get(events.HeaderPartitionKey), nil
	})
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		config := kafka.DefaultSaramaSyncPublisherConfig()
		throughProxy(config, o)
		return kafka.NewPublisher(kafka.PublisherConfig{Brokers: []string{o.Address}, Marshaler: byKey, OverwriteSaramaConfig: config}, nil)
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		config := kafka.DefaultSaramaSubscriberConfig()
		config.Version = sarama.V2_1_0_0                      // Kafka 4 speaks nothing older
		config.Consumer.Offsets.Initial = sarama.OffsetOldest // else a new group misses what is there
		config.Consumer.Group.Session.Timeout = 6 * o.Failover
		config.Consumer.Group.Heartbeat.Interval = o.Failover / 2
		throughProxy(config, o)
		return kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: []string{o.Address}, Unmarshaler: byKey, ConsumerGroup: brokertest.Group,
			NackResendSleep: 10 * time.Millisecond, OverwriteSaramaConfig: config}, nil)
	}
	return b
}

func throughProxy(config *sarama.Config, o brokertest.Options) {
	config.Net.Proxy.Enable = true
	config.Net.Proxy.Dialer = dialer{onkafka.Dialer(o)}
}

type dialer struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.dial(context.Background(), network, address)
}
