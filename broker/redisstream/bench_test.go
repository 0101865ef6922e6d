package redisstream

import (
	"context"
	"strconv"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// Batches of 1,000 events of 600 bytes to the real server: ours, go-redis' own
// pipeline (no order after a failure), and the stock publisher. One run, side
// by side:
//
//	go test ./broker/redisstream -run - -bench Publish -benchtime 2s
func BenchmarkPublish(b *testing.B) {
	const batch = 1000
	ctx := context.Background()
	c, prefix := testkit.Redis(b), testkit.Prefix(b)
	msgs := outboxMessages(prefix+"s", "k", batch)
	for i, m := range msgs {
		m.Key = "key " + strconv.Itoa(i%100)
		m.Payload = make([]byte, 600)
		for j := range m.Payload {
			m.Payload[j] = byte('a' + (i*7+j*j)%26)
		}
	}
	run := func(name string, goroutines int, publish func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(max(1, goroutines/2)) // times GOMAXPROCS
			one := func() {
				if err := publish(); err != nil {
					b.Fatal(err)
				}
			}
			if goroutines == 1 {
				for b.Loop() {
					one()
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						one()
					}
				})
			}
			b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "events/s")
			b.StopTimer()
			c.Unlink(ctx, prefix+"s")
		})
	}
	p := newPublisher(b, PublisherConfig{Client: c})
	ours := func() error {
		results := make([]outbox.Result, batch)
		p.PublishBatch(ctx, msgs, results)
		for _, r := range results {
			if r.Status != outbox.Done {
				return r.Err
			}
		}
		return nil
	}
	metadata := relayMessages(msgs).appendMetadata(nil, 0)
	raw := func() error {
		pipe := c.Pipeline()
		for _, m := range msgs {
			pipe.XAdd(ctx, &redis.XAddArgs{Stream: m.Topic, Values: []any{
				fieldUUID, m.EventID.String(), fieldMetadata, metadata, fieldPayload, m.Payload}})
		}
		_, err := pipe.Exec(ctx)
		return err
	}
	theirs, err := stock.NewPublisher(stock.PublisherConfig{Client: c}, watermill.NopLogger{})
	if err != nil {
		b.Fatal(err)
	}
	for _, goroutines := range []int{1, 4} {
		run("ours/"+strconv.Itoa(goroutines), goroutines, ours)
		run("pipeline/"+strconv.Itoa(goroutines), goroutines, raw)
	}
	run("stock/1", 1, func() error {
		for _, m := range msgs {
			if err := theirs.Publish(m.Topic, m.Watermill()); err != nil {
				return err
			}
		}
		return nil
	})
}

// One entry after the other through the whole contract: message, channel, ack.
func BenchmarkConsume(b *testing.B) {
	const entries = 2000
	for _, who := range []string{"ours", "stock"} {
		b.Run(who, func(b *testing.B) {
			b.ReportAllocs()
			c, prefix := testkit.Redis(b), testkit.Prefix(b)
			p := newPublisher(b, PublisherConfig{Client: c})
			publishBatch(p, context.Background(), outboxMessages(prefix+"s", "k", entries))
			for n := 0; b.Loop(); n++ {
				group := "group " + strconv.Itoa(n)
				var s message.Subscriber
				if who == "ours" {
					s = newSubscriber(b, SubscriberConfig{Client: c, Group: group})
				} else {
					var err error
					if s, err = stock.NewSubscriber(stock.SubscriberConfig{Client: c, ConsumerGroup: group}, watermill.NopLogger{}); err != nil {
						b.Fatal(err)
					}
				}
				ctx, cancel := context.WithCancel(context.Background())
				ch, err := s.Subscribe(ctx, prefix+"s")
				if err != nil {
					b.Fatal(err)
				}
				for range entries {
					receive(b, ch).Ack()
				}
				cancel()
			}
			b.ReportMetric(float64(b.N*entries)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
