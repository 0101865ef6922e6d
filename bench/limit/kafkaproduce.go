package limit

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/outbox"
)

// KafkaProduce is the limit of publish.kafka: franz-go's ProduceSync of one batch, with
// the headers that watermill-kafka writes. It does not ask what a topic takes, nor hold
// a key back after a failure.
func KafkaProduce(ctx context.Context, client *kgo.Client, msgs []*outbox.Message) error {
	records := make([]kgo.Record, len(msgs))
	all := make([]*kgo.Record, len(msgs))
	for i, m := range msgs {
		r := &records[i]
		r.Topic, r.Key, r.Value = m.Topic, []byte(m.Key), m.Payload
		r.Headers = append(make([]kgo.RecordHeader, 0, 6), kgo.RecordHeader{Key: "_watermill_message_uuid", Value: []byte(m.EventID.String())})
		m.EachHeader(func(name, value string) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
		})
		all[i] = r
	}
	return client.ProduceSync(ctx, all...).FirstErr()
}
