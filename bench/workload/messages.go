package workload

import (
	"context"
	"time"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// Messages are n events as a relay hands them to a publisher, over so many keys in turn.
func Messages(topic string, n, overKeys int) []*outbox.Message {
	msgs := make([]*outbox.Message, n)
	for i := range msgs {
		event := EventOf(i % overKeys)
		payload, err := event.Encode()
		if err != nil {
			panic(err)
		}
		msgs[i] = &outbox.Message{
			LogID: int64(i + 1), EventID: event.EventID, EventType: event.EventType, SchemaVersion: event.SchemaVersion,
			Topic: topic, Key: event.Key(), ContentType: events.ContentTypeJSON, Source: source, Payload: payload,
		}
	}
	return msgs
}

// source is as long as a relay's.
const source = "00000000-0000-0000-0000-000000000000/1"

// Batches publishes rows messages, size a call, one call after the other, and gives the
// rate. It takes them from msgs, again and again: whoever publishes must not change them.
func Batches(ctx context.Context, msgs []*outbox.Message, rows, size int, publish func(context.Context, []*outbox.Message) error) (float64, error) {
	began := time.Now()
	for at := 0; at < rows; at += size {
		from := at % len(msgs)
		if err := publish(ctx, msgs[from:min(from+size, from+rows-at)]); err != nil {
			return 0, err
		}
	}
	return harness.PerSecond(rows, time.Since(began)), nil
}
