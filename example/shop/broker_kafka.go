package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/broker/kafka"
)

// kafkaBroker is Kafka: a topic is a topic, of three partitions. What has the same
// partition key is in one of them, and stays in order.
type kafkaBroker struct {
	cluster kafka.Cluster
	client  *kgo.Client // for what adapters don't do: topics are looked into
	admin   *kadm.Client
	group   string
}

func openKafka(ctx context.Context, address, prefix string) (broker, error) {
	cluster := kafka.Cluster{Brokers: strings.Split(address, ",")}
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.Brokers...))
	if err != nil {
		return nil, fmt.Errorf("POSTBUS_KAFKA_BROKERS is no list of brokers (%w): %w", err, errNoServers)
	}
	if err := client.Ping(ctx); err != nil {
		client.Close()
		return nil, noAnswer("Kafka", address, err)
	}
	return &kafkaBroker{cluster, client, kadm.NewClient(client), prefix + shopGroup}, nil
}

func (b *kafkaBroker) Publisher() (message.Publisher, error) {
	return kafka.NewPublisher(kafka.PublisherConfig{Cluster: b.cluster})
}

func (b *kafkaBroker) Subscriber(logger *slog.Logger) (message.Subscriber, error) {
	return kafka.NewSubscriber(kafka.SubscriberConfig{Cluster: b.cluster, Group: b.group, Logger: logger})
}

// topology is all that the shop needs of Kafka.
func (b *kafkaBroker) topology(topics []string) (t kafka.Topology) {
	for _, topic := range topics {
		t.Topics = append(t.Topics, kafka.Topic{Name: topic, Partitions: 3})
	}
	return t
}

func (b *kafkaBroker) Declare(ctx context.Context, topics []string) error {
	return b.topology(topics).Declare(ctx, b.cluster)
}
