package kafka

import (
	"context"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/internal/testkit"
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

// 100,000 events of 600 bytes and a handler that does nothing: ours, and
// franz-go's poll loop carried through the same contract, which is a Watermill
// message through a channel, its ack, and a commit of what is acked, one message
// at a time per partition of four. One run, side by side:
//
//	go test ./broker/kafka -run - -bench Consume -benchtime 3x
func BenchmarkConsume(b *testing.B) {
	const n = 100_000
	c := shared(b)
	topic := newTopic(b, admin(b, c), 4)
	p := newPublisher(b, PublisherConfig{Cluster: c})
	msgs := outboxMessages(topic, "k", 1000)
	for i, m := range msgs {
		m.Key = "key " + strconv.Itoa(i)
		m.Payload = make([]byte, 600)
	}
	for range n / len(msgs) {
		publishAll(b, p, msgs)
	}
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		var took time.Duration // from the first to the last
		used := cpu(b)
		for b.Loop() {
			s := newSubscriber(b, SubscriberConfig{Cluster: c})
			ch := subscribe(b, s, topic)
			(<-ch).Ack()
			began := time.Now()
			for range n - 1 {
				(<-ch).Ack()
			}
			took += time.Since(began)
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N*n)/took.Seconds(), "events/s")
		b.ReportMetric(float64(cpu(b)-used)/float64(b.N*n), "cpu-ns/event")
	})
	b.Run("raw", func(b *testing.B) {
		b.ReportAllocs()
		var took time.Duration
		used := cpu(b)
		for b.Loop() {
			client, err := kgo.NewClient(c.options(kgo.ConsumerGroup(testkit.Name(b)), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit())...)
			if err != nil {
				b.Fatal(err)
			}
			var began time.Time
			out := make(chan *message.Message)
			go func() {
				for m := range out {
					m.Ack()
				}
			}()
			for got := 0; got < n; {
				fetches := client.PollRecords(context.Background(), pollRecords)
				if began.IsZero() {
					began = time.Now()
				}
				fetches.EachRecord(func(r *kgo.Record) {
					m := messageOf(taken{r, newPart(r.Partition)}, 1)
					out <- m
					<-m.Acked()
					got++
				})
				if err := client.CommitRecords(context.Background(), fetches.Records()...); err != nil {
					b.Fatal(err)
				}
			}
			took += time.Since(began)
			close(out)
			client.Close()
		}
		b.ReportMetric(float64(b.N*n)/took.Seconds(), "events/s")
		b.ReportMetric(float64(cpu(b)-used)/float64(b.N*n), "cpu-ns/event")
	})
}

// cpu is what this process has used: true also on a machine that does much else.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
