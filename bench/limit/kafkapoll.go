package limit

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

// KafkaPoller is a franz-go client in a group that commits every 100 ms what is marked.
func KafkaPoller(brokers []string, group, topic string) (*kgo.Client, error) {
	return kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DisableClientMetrics(), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.AutoCommitMarks(), kgo.AutoCommitInterval(100*time.Millisecond))
}

// KafkaPoll is the limit of consume.kafka: franz-go's poll loop, carried through
// Watermill's contract. Every record becomes a message, goes through the channel, and its
// ack is waited for; then the batch is marked to be committed. It keeps no order of keys,
// knows no nack, and gives up nothing in good order. It ends with ctx.
func KafkaPoll(ctx context.Context, client *kgo.Client, out chan<- *message.Message) error {
	var batch []*message.Message
	for {
		fetches := client.PollRecords(ctx, 1000)
		if ctx.Err() != nil {
			return client.CommitMarkedOffsets(context.WithoutCancel(ctx))
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		records := fetches.Records()
		batch = batch[:0]
		for _, r := range records {
			m := message.NewMessage("", r.Value)
			m.Metadata = make(message.Metadata, len(r.Headers))
			for _, h := range r.Headers {
				if h.Key == "_watermill_message_uuid" {
					m.UUID = string(h.Value)
				} else {
					m.Metadata[h.Key] = string(h.Value)
				}
			}
			hand(ctx, out, m)
			batch = append(batch, m)
		}
		if acked(ctx, batch) {
			client.MarkCommitRecords(records...)
		}
	}
}

// hand gives a message to whoever handles it.
func hand(ctx context.Context, out chan<- *message.Message, m *message.Message) {
	select {
	case out <- m:
	case <-ctx.Done():
	}
}

// acked waits for the acks of a batch. Most are there when the first one is. It is false
// if ctx ends before.
func acked(ctx context.Context, batch []*message.Message) bool {
	for _, m := range batch {
		select {
		case <-m.Acked():
			continue
		default:
		}
		select {
		case <-m.Acked():
		case <-ctx.Done():
			select {
			case <-m.Acked(): // both: what was handled is acknowledged
			default:
				return false
			}
		}
	}
	return true
}
