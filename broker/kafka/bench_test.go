package kafka

import (
	"context"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/outbox"
)

// Batches of 1,000 events of 600 bytes to the real server: ours, and franz-go's
// own ProduceSync with the same settings and records. One run, side by side:
//
//	go test ./broker/kafka -run - -bench Publish -benchtime 3s
func BenchmarkPublish(b *testing.B) {
	const batch = 1000
	ctx := context.Background()
	c := shared(b)
	topic := newTopic(b, admin(b, c), 4)
	msgs := outboxMessages(topic, "k", batch)
	for i, m := range msgs {
		m.Key = "key " + strconv.Itoa(i%100)
		m.Payload = make([]byte, 600)
		for j := range m.Payload {
			m.Payload[j] = byte('a' + (i*7+j*j)%26)
		}
	}
	run := func(name string, publish func() error) {
		for _, goroutines := range []int{1, 8} {
			b.Run(name+"/"+strconv.Itoa(goroutines), func(b *testing.B) {
				b.ReportAllocs()
				if err := publish(); err != nil { // connections, metadata
					b.Fatal(err)
				}
				if goroutines == 1 {
					for b.Loop() {
						if err := publish(); err != nil {
							b.Fatal(err)
						}
					}
				} else {
					b.SetParallelism(goroutines / 2) // times GOMAXPROCS
					b.ResetTimer()
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							if err := publish(); err != nil {
								b.Error(err)
							}
						}
					})
				}
				b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "events/s")
			})
		}
	}
	p := newPublisher(b, PublisherConfig{Cluster: c})
	run("ours", func() error {
		results := make([]outbox.Result, batch)
		p.PublishBatch(ctx, msgs, results)
		for _, r := range results {
			if r.Status != outbox.Done {
				return r.Err
			}
		}
		return nil
	})

	client, err := kgo.NewClient(c.options(kgo.ProducerBatchCompression(kgo.Lz4Compression()), kgo.ProducerLinger(defaultLinger))...)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	run("raw", func() error {
		records := make([]*kgo.Record, batch)
		for i, m := range msgs {
			records[i] = &kgo.Record{Topic: topic, Key: []byte(m.Key), Value: m.Payload}
		}
		return client.ProduceSync(ctx, records...).FirstErr()
	})
	run("raw with headers", func() error {
		records := make([]*kgo.Record, batch)
		for i, m := range msgs {
			r := &kgo.Record{Topic: topic, Key: []byte(m.Key), Value: m.Payload}
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerUUID, Value: []byte(m.EventID.String())})
			m.EachHeader(func(k, v string) { r.Headers = append(r.Headers, kgo.RecordHeader{Key: k, Value: []byte(v)}) })
			records[i] = r
		}
		return client.ProduceSync(ctx, records...).FirstErr()
	})
}
