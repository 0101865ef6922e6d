package compare

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/broker/kafka"
	"github.com/postbus/postbus/outbox"
)

var onKafka = broker{
	name: "kafka", server: harness.Kafka, open: openKafka,
	publish: size{300_000, 50_000}, drain: size{200_000, 50_000}, consume: size{300_000, 50_000},
	publishNote: "franz-go's ProduceSync of the same records, without a linger, acks=all, idempotent, lz4. One partition",
	drainNote:   "franz-go's ProduceSync of 1,000 records",
	consumeNote: "franz-go's poll loop",
}

// kafkaSite is a topic of one partition.
type kafkaSite struct {
	brokers []string
	name    string
	admin   *kadm.Client
	raw     *kgo.Client
	group   string
	groups  []string
}

func openKafka(ctx context.Context, name string) (site, error) {
	s := &kafkaSite{brokers: strings.Split(harness.Kafka.URL(), ","), name: name}
	client, err := limit.KafkaClient(s.brokers)
	if err != nil {
		return nil, err
	}
	s.raw, s.admin = client, kadm.NewClient(client)
	// What was read and deleted leaves the disk soon.
	segment, soon := "67108864", "1000"
	_, err = s.admin.CreateTopic(ctx, 1, 1, map[string]*string{"segment.bytes": &segment, "file.delete.delay.ms": &soon}, name)
	return s, err
}

func (s *kafkaSite) topic() string { return s.name }

func (s *kafkaSite) empty(ctx context.Context) error {
	ends, err := s.admin.ListEndOffsets(ctx, s.name)
	if err == nil {
		_, err = s.admin.DeleteRecords(ctx, ends.Offsets())
	}
	return err
}

func (s *kafkaSite) held(ctx context.Context) (int, error) {
	starts, err := s.admin.ListStartOffsets(ctx, s.name)
	if err != nil {
		return 0, err
	}
	ends, err := s.admin.ListEndOffsets(ctx, s.name)
	if err != nil {
		return 0, err
	}
	first, _ := starts.Lookup(s.name, 0)
	end, _ := ends.Lookup(s.name, 0)
	return int(end.Offset - first.Offset), errors.Join(first.Err, end.Err)
}

// unread has everybody read in a group that is new.
func (s *kafkaSite) unread(context.Context) error {
	s.group = fmt.Sprintf("%s-%d", s.name, len(s.groups))
	s.groups = append(s.groups, s.group)
	return nil
}

func (s *kafkaSite) left(ctx context.Context) (int, error) {
	starts, err := s.admin.ListStartOffsets(ctx, s.name)
	if err != nil {
		return 0, err
	}
	n, err := s.held(ctx)
	if err != nil {
		return 0, err
	}
	committed, err := s.admin.FetchOffsets(ctx, s.group)
	if err != nil {
		return 0, err
	}
	if at, ok := committed.Lookup(s.name, 0); ok && at.At >= 0 {
		first, _ := starts.Lookup(s.name, 0)
		n -= int(at.At - first.Offset)
	}
	return n, nil
}

func (s *kafkaSite) forgets() int { return 0 }

func (s *kafkaSite) remove(ctx context.Context) error {
	defer s.raw.Close()
	for _, g := range s.groups {
		s.admin.DeleteGroup(ctx, g) // some have never had a member
	}
	_, err := s.admin.DeleteTopic(ctx, s.name)
	return err
}

func (s *kafkaSite) publisher() (ourPublisher, error) {
	return kafka.NewPublisher(kafka.PublisherConfig{Cluster: kafka.Cluster{Brokers: s.brokers}, Logger: workload.Warnings})
}

func (s *kafkaSite) subscriber(inFlight int) (message.Subscriber, error) {
	return kafka.NewSubscriber(kafka.SubscriberConfig{Cluster: kafka.Cluster{Brokers: s.brokers}, Group: s.group,
		MaxInFlight: inFlight, Logger: workload.Warnings})
}

func (s *kafkaSite) rawPublish(ctx context.Context, msgs []*outbox.Message) error {
	return limit.KafkaProduce(ctx, s.raw, msgs)
}

func (s *kafkaSite) rawDrain(ctx context.Context, e *harness.Env, rows int) (float64, error) {
	return limit.KafkaLoop(ctx, e.Pool, s.raw, e.Table("outbox"), s.name, rows)
}

func (s *kafkaSite) rawConsume(ctx context.Context, out chan<- *message.Message) error {
	client, err := limit.KafkaPoller(s.brokers, s.group, s.name)
	if err != nil {
		return err
	}
	defer client.Close()
	return limit.KafkaPoll(ctx, client, out)
}

func (s *kafkaSite) stockPublisher() (message.Publisher, error) {
	return peer.KafkaPublisher(s.brokers)
}
func (s *kafkaSite) stockSubscriber() (message.Subscriber, error) {
	return peer.KafkaSubscriber(s.brokers, s.group)
}
