package rabbitmq

import (
	"context"
	"strconv"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// Batches of 1,000 events of 600 bytes to the real server: ours, and
// amqp091-go's own deferred confirms with the same headers. One run, side by
// side:
//
//	go test ./broker/rabbitmq -run - -bench Publish -benchtime 2s
func BenchmarkPublish(b *testing.B) {
	const batch = 1000
	for _, typ := range []QueueType{Classic, Quorum} {
		q := Queue{Name: testkit.Name(b), Type: typ, NoDeadLetterLosesMessages: true}
		declare(b, Topology{Queues: []Queue{q}})
		raw := admin(b, testkit.RabbitMQ(b))
		if err := raw.Confirm(false); err != nil {
			b.Fatal(err)
		}
		run := func(name string, goroutines, keys int, publish func([]*outbox.Message) error) {
			b.Run(typ.String()+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				one := func() {
					if err := publish(sized(q.Name, batch, keys)); err != nil {
						b.Fatal(err)
					}
				}
				if goroutines > 1 {
					b.SetParallelism(max(1, goroutines/2)) // times GOMAXPROCS
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							one()
						}
					})
				} else {
					for b.Loop() {
						one()
					}
				}
				b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "events/s")
				b.StopTimer()
				raw.QueuePurge(q.Name, false)
			})
		}
		p := newPublisher(b, PublisherConfig{Kind: DefaultExchange})
		ours := func(msgs []*outbox.Message) error {
			results := make([]outbox.Result, len(msgs))
			p.PublishBatch(context.Background(), msgs, results)
			for _, r := range results {
				if r.Err != nil {
					return r.Err
				}
			}
			return nil
		}
		run("raw", 1, batch, func(msgs []*outbox.Message) error { return rawPublish(raw, q.Name, msgs) })
		run("ours", 1, batch, ours)
		run("ours/10 keys", 1, 10, ours)
		run("ours/1 key", 1, 1, ours)
		run("ours/8 at once", 8, batch, ours)
	}
}

func rawPublish(ch *amqp.Channel, queue string, msgs []*outbox.Message) error {
	waiting := make([]*amqp.DeferredConfirmation, len(msgs))
	for i, m := range msgs {
		headers := amqp.Table{headerUUID: m.EventID.String()}
		m.EachHeader(func(k, v string) { headers[k] = v })
		c, err := ch.PublishWithDeferredConfirm("", queue, true, false, amqp.Publishing{
			Headers: headers, DeliveryMode: amqp.Persistent, MessageId: m.EventID.String(),
			ContentType: m.ContentType, Timestamp: time.Now(), Body: m.Payload})
		if err != nil {
			return err
		}
		waiting[i] = c
	}
	for _, c := range waiting {
		c.Wait()
	}
	return nil
}

// sized are messages of 600 bytes, dealt out to keys.
func sized(topic string, n, keys int) []*outbox.Message {
	msgs := outboxMessages(topic, "", n)
	for i, m := range msgs {
		m.Key = "key " + strconv.Itoa(i%keys)
		m.Payload = make([]byte, 600)
		for j := range m.Payload {
			m.Payload[j] = byte('a' + (i*7+j*j)%26)
		}
	}
	return msgs
}
