// Package onkafka describes Kafka to the conformance suite.
package onkafka

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/broker/kafka"
	"github.com/postbus/postbus/internal/brokertest"
	"github.com/postbus/postbus/internal/testkit"
)

// partitions of a topic: as many consumers as there are at most, and keys on each.
const partitions = 4

// Ours is broker/kafka.
func Ours() brokertest.Broker {
	b := Server()
	b.Name = "Kafka"
	b.Capabilities = brokertest.Everything()
	b.Publisher = func(o brokertest.Options) (message.Publisher, error) {
		return kafka.NewPublisher(kafka.PublisherConfig{Cluster: cluster(o), DeliveryTimeout: o.Timeout, Logger: o.Logger})
	}
	b.Subscriber = func(o brokertest.Options) (message.Subscriber, error) {
		return kafka.NewSubscriber(kafka.SubscriberConfig{Cluster: cluster(o), Group: brokertest.Group, MaxInFlight: o.MaxInFlight,
			NackDelay: 5 * time.Millisecond, SessionTimeout: 6 * o.Failover, Logger: o.Logger})
	}
	b.Lag = func(ctx context.Context, s message.Subscriber, topic string) (messages int64, oldest time.Duration, err error) {
		lags, err := s.(*kafka.Subscriber).Lag(ctx)
		for _, l := range lags {
			messages, oldest = messages+l.Messages, max(oldest, l.Oldest)
		}
		return messages, oldest, err
	}
	return b
}

func cluster(o brokertest.Options) kafka.Cluster {
	return kafka.Cluster{Brokers: []string{o.Address}, Options: []kgo.Opt{kgo.Dialer(Dialer(o))}}
}

// Dialer goes to the address in the options, whatever the broker calls itself: it knows
// nothing of a proxy before it.
func Dialer(o brokertest.Options) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, o.Address)
	}
}

// Server is what is true of Kafka, whoever publishes and subscribes.
func Server() brokertest.Broker {
	return brokertest.Broker{
		Address:        func(t testing.TB) string { return testkit.Kafka(t)[0] },
		Private:        func(t testing.TB) brokertest.Server { return testkit.PrivateKafka(t) },
		NewTopic:       newTopic,
		LargestPayload: 1_000_000, // of 1,048,588 bytes of a batch
		TooLarge:       1_100_000,
		Foreign: func(t testing.TB, address, topic string) {
			client := newClient(t, address, kgo.RecordPartitioner(kgo.ManualPartitioner()))
			for p := range int32(partitions) { // wherever the others are
				if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: p, Value: []byte("21.5")}).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
		},
		RefusedTopic: func(t testing.TB, _ string) string { return testkit.Name(t) }, // nothing is created by being named
	}
}

func newTopic(t testing.TB, address string) string {
	t.Helper()
	topic := testkit.Name(t)
	admin := kadm.NewClient(newClient(t, address))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := admin.CreateTopic(ctx, partitions, 1, nil, topic); err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
	// The broker that has created it may not know it yet.
	testkit.Eventually(t, 30*time.Second, func() bool {
		topics, err := admin.ListTopics(ctx, topic)
		return err == nil && topics[topic].Err == nil && len(topics[topic].Partitions) == partitions
	}, "the broker knows topic %s", topic)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		admin.DeleteTopics(ctx, topic) // the server may have been killed
	})
	return topic
}

func newClient(t testing.TB, address string, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(address), kgo.DisableClientMetrics())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}
