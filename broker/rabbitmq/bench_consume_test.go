package rabbitmq

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// 5,000 messages of 600 bytes and 1,000 keys, a no-op handler, single acks: the
// raw client, the raw client carried through Watermill's contract one by one, and
// ours. One run, side by side:
//
//	go test ./broker/rabbitmq -run - -bench Consume -benchtime 5x
func BenchmarkConsume(b *testing.B) {
	const n = 5_000
	q := Queue{Name: testkit.Name(b), Type: Classic, NoDeadLetterLosesMessages: true}
	declare(b, Topology{Queues: []Queue{q}})
	p := newPublisher(b, PublisherConfig{Kind: DefaultExchange})
	run := func(name string, prefetch int, consume func(b *testing.B, prefetch int)) {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				for i := 0; i < n; i += 1000 {
					results := make([]outbox.Result, 1000)
					p.PublishBatch(context.Background(), sized(q.Name, 1000, 1000), results)
					allDone(b, results)
				}
				b.StartTimer()
				consume(b, prefetch)
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
		})
	}
	rawDeliveries := func(b *testing.B, prefetch int) (<-chan amqp.Delivery, *amqp.Channel) {
		ch := admin(b, testkit.RabbitMQ(b))
		if err := ch.Qos(prefetch, 0, false); err != nil {
			b.Fatal(err)
		}
		deliveries, err := ch.Consume(q.Name, "", false, false, false, false, nil)
		if err != nil {
			b.Fatal(err)
		}
		return deliveries, ch
	}
	raw := func(b *testing.B, prefetch int) {
		got := 0
		deliveries, ch := rawDeliveries(b, prefetch)
		defer ch.Close()
		for d := range deliveries {
			d.Ack(false)
			if got++; got == n {
				return
			}
		}
	}
	contract := func(b *testing.B, prefetch int) {
		out := make(chan *message.Message)
		go func() {
			for m := range out {
				m.Ack()
			}
		}()
		got := 0
		deliveries, ch := rawDeliveries(b, prefetch)
		defer ch.Close()
		for d := range deliveries {
			m := message.NewMessage(d.MessageId, d.Body)
			for k, v := range d.Headers {
				m.Metadata[k], _ = v.(string)
			}
			out <- m
			<-m.Acked()
			d.Ack(false)
			if got++; got == n {
				break
			}
		}
		close(out)
	}
	ours := func(b *testing.B, prefetch int) {
		s := newSubscriber(b, SubscriberConfig{MaxInFlight: min(prefetch, 64), Prefetch: prefetch})
		got := 0
		for m := range subscribe(b, s, q.Name) {
			m.Ack()
			if got++; got == n {
				break
			}
		}
		s.Close()
	}
	for _, prefetch := range []struct {
		name string
		n    int
	}{{"10", 10}, {"64", 64}, {"1000", 1000}} {
		run("raw/"+prefetch.name, prefetch.n, raw)
		run("raw and contract/"+prefetch.name, prefetch.n, contract)
		run("ours/"+prefetch.name, prefetch.n, ours)
	}
}
