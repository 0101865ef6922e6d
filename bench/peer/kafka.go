package peer

import (
	"github.com/IBM/sarama"
	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

// byPartitionKey keeps the order of keys, as an outbox needs it.
var byPartitionKey = kafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) {
	return m.Metadata.Get("partition_key"), nil
})

// KafkaPublisher is watermill-kafka's with its defaults, which ask for one acknowledgement
// (acks=1).
func KafkaPublisher(brokers []string) (message.Publisher, error) {
	return kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Marshaler: byPartitionKey}, watermill.NopLogger{})
}

// KafkaSubscriber is watermill-kafka's with its defaults, but for what it needs to read
// from Kafka 4, and from the beginning.
func KafkaSubscriber(brokers []string, group string) (message.Subscriber, error) {
	config := kafka.DefaultSaramaSubscriberConfig()
	config.Version = sarama.V2_1_0_0
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	return kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: brokers, ConsumerGroup: group, Unmarshaler: byPartitionKey,
		OverwriteSaramaConfig: config}, watermill.NopLogger{})
}
