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
	text := make([]byte, 0, 200*len(msgs)) // of all headers; what it outgrows stays where it is
	for i, m := range msgs {
		r := &records[i]
		r.Topic, r.Key, r.Value = m.Topic, []byte(m.Key), m.Payload
		r.Headers = make([]kgo.RecordHeader, 0, 6)
		add := func(name, value string) {
			at := len(text)
			text = append(text, value...)
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: text[at:]})
		}
		add("_watermill_message_uuid", m.EventID.String())
		m.EachHeader(add)
		all[i] = r
	}
	return client.ProduceSync(ctx, all...).FirstErr()
}
