package limit

import (
	"context"
	"errors"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

// RabbitConsume is the limit of consume.rabbitmq: amqp091-go's deliveries, carried through
// Watermill's contract. Every delivery becomes a message, goes through the channel, and its
// ack is waited for; then it is acknowledged, each by itself, as whoever has several in
// flight must. It keeps no order of keys and knows no nack. It ends
// with ctx, and has then acknowledged what was handled; the caller closes the channel.
func RabbitConsume(ctx context.Context, channel *amqp.Channel, queue string, prefetch int, out chan<- *message.Message) error {
	if err := channel.Qos(prefetch, 0, false); err != nil {
		return err
	}
	deliveries, err := channel.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	type pending struct {
		message *message.Message
		tag     uint64
	}
	handed := make(chan pending, prefetch)
	ended := make(chan error, 1)
	go func() {
		for p := range handed {
			if acked(ctx, []*message.Message{p.message}) {
				if err := channel.Ack(p.tag, false); err != nil {
					ended <- err
					return
				}
			}
		}
		ended <- nil
	}()
	for ctx.Err() == nil {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return errors.New("RabbitMQ has closed the channel, or deleted the queue")
			}
			id, _ := d.Headers["_watermill_message_uuid"].(string)
			m := message.NewMessage(id, d.Body)
			m.Metadata = make(message.Metadata, len(d.Headers))
			for name, value := range d.Headers {
				if text, ok := value.(string); ok && name != "_watermill_message_uuid" {
					m.Metadata[name] = text
				}
			}
			hand(ctx, out, m)
			handed <- pending{m, d.DeliveryTag}
		case <-ctx.Done():
		}
	}
	close(handed)
	return <-ended
}
