package redisstream

import (
	"context"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

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

// Reading a stream of 1,000 keys through the whole contract, message, channel
// and ack: ours, beside a loop of go-redis that reads and acknowledges by 256, hands
// over one by one, and has no keys, no repeats, no claims and no end.
func BenchmarkConsume(b *testing.B) {
	const entries = 20_000
	for _, who := range []string{"raw", "ours", "stock"} {
		b.Run(who, func(b *testing.B) {
			b.ReportAllocs()
			n := entries
			if who == "stock" {
				n /= 10
			}
			consume(b, n, func(c *redis.Client, stream, group string) (<-chan *message.Message, func()) {
				switch who {
				case "raw":
					return rawLoop(b, c, stream, group)
				case "ours":
					return oursFrom(b, SubscriberConfig{Client: c, Group: group, MaxInFlight: 64}, stream)
				}
				s, err := stock.NewSubscriber(stock.SubscriberConfig{Client: c, ConsumerGroup: group, OldestId: "0"}, watermill.NopLogger{})
				if err != nil {
					b.Fatal(err)
				}
				return from(b, s, stream)
			}, func(m *message.Message) { m.Ack() })
		})
	}
}

// A handler of one millisecond, beside as many goroutines that take from the loop's channel.
func BenchmarkConsumeSlowly(b *testing.B) {
	for _, n := range []int{8, 64} {
		slow := func(m *message.Message) {
			time.Sleep(time.Millisecond)
			m.Ack()
		}
		b.Run("pool/"+strconv.Itoa(n), func(b *testing.B) {
			consume(b, 200*n, func(c *redis.Client, stream, group string) (<-chan *message.Message, func()) {
				return rawPool(b, c, stream, group, n)
			}, func(*message.Message) {})
		})
		b.Run("ours/"+strconv.Itoa(n), func(b *testing.B) {
			consume(b, 200*n, func(c *redis.Client, stream, group string) (<-chan *message.Message, func()) {
				return oursFrom(b, SubscriberConfig{Client: c, Group: group, MaxInFlight: n}, stream)
			}, func(m *message.Message) { go slow(m) })
		})
	}
}

// consume reads a stream of so many entries to its end, by a new group in each
// round. handle settles the message, or sees to it.
func consume(b *testing.B, entries int, open func(c *redis.Client, stream, group string) (<-chan *message.Message, func()), handle func(*message.Message)) {
	c, stream := testkit.Redis(b), testkit.Prefix(b)+"s"
	p := newPublisher(b, PublisherConfig{Client: c})
	msgs := make([]*outbox.Message, entries)
	for i := range msgs {
		msgs[i] = outboxMessage(stream, "customer-"+strconv.Itoa(i%1000), i)
		msgs[i].Payload = make([]byte, 600)
	}
	publishBatch(p, context.Background(), msgs)
	cpu := cpuTime()
	total := 0
	for n := 0; b.Loop(); n++ {
		ch, stop := open(c, stream, "group "+strconv.Itoa(n))
		for range entries {
			handle(<-ch)
		}
		b.StopTimer() // a read that waits is not interrupted
		stop()
		total += entries
		b.StartTimer()
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(cpuTime()-cpu)/float64(total), "cpu-ns/event")
}

func from(b *testing.B, s message.Subscriber, stream string) (<-chan *message.Message, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ch, err := s.Subscribe(ctx, stream)
	if err != nil {
		b.Fatal(err)
	}
	return ch, func() {
		cancel()
		for range ch {
		}
	}
}

func oursFrom(b *testing.B, cfg SubscriberConfig, stream string) (<-chan *message.Message, func()) {
	return from(b, newSubscriber(b, cfg), stream)
}

// rawRead is the bare loop; hand gets the messages of each read and returns when all are settled.
func rawRead(b *testing.B, c *redis.Client, stream, group string, hand func([]*message.Message)) func() {
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.XGroupCreate(ctx, stream, group, "0").Err(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var ids []string
		var msgs []*message.Message
		for ctx.Err() == nil {
			pipe := c.Pipeline()
			if len(ids) > 0 {
				pipe.XAck(ctx, stream, group, ids...)
			}
			read := pipe.XReadGroup(ctx, &redis.XReadGroupArgs{Group: group, Consumer: "c", Streams: []string{stream, ">"}, Count: 256, Block: time.Second})
			if _, _ = pipe.Exec(ctx); len(read.Val()) == 0 {
				return
			}
			ids, msgs = ids[:0], msgs[:0]
			for _, e := range read.Val()[0].Messages {
				m, err := decode(e.Values)
				if err != nil {
					b.Error(err)
					return
				}
				ids, msgs = append(ids, e.ID), append(msgs, m)
			}
			hand(msgs)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

func settledRaw(m *message.Message) {
	select {
	case <-m.Acked():
	case <-m.Nacked():
	}
}

func rawLoop(b *testing.B, c *redis.Client, stream, group string) (<-chan *message.Message, func()) {
	out := make(chan *message.Message)
	return out, rawRead(b, c, stream, group, func(msgs []*message.Message) {
		for _, m := range msgs {
			out <- m
			settledRaw(m)
		}
	})
}

// rawPool hands the messages to n goroutines of its own, and gives what they have settled.
func rawPool(b *testing.B, c *redis.Client, stream, group string, n int) (<-chan *message.Message, func()) {
	work, out := make(chan *message.Message), make(chan *message.Message, n)
	var pool sync.WaitGroup
	for range n {
		pool.Go(func() {
			for m := range work {
				time.Sleep(time.Millisecond)
				m.Ack()
				out <- m
			}
		})
	}
	stop := rawRead(b, c, stream, group, func(msgs []*message.Message) {
		for _, m := range msgs {
			work <- m
		}
	})
	return out, func() {
		stop()
		close(work)
		pool.Wait()
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
