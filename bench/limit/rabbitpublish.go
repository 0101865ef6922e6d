package limit

import (
	"context"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/outbox"
)

// RabbitPublish is the limit of publish.rabbitmq: amqp091-go's deferred confirms. A batch
// is published on one channel in confirm mode, mandatory and persistent, with the headers
// that watermill-amqp writes; then the confirmations are waited for. What comes back as unroutable
// nobody looks at.
func RabbitPublish(ctx context.Context, channel *amqp.Channel, queue string, msgs []*outbox.Message) error {
	confirmations := make([]*amqp.DeferredConfirmation, len(msgs))
	for i, m := range msgs {
		headers := make(amqp.Table, 6)
		id := m.EventID.String()
		headers["_watermill_message_uuid"] = id
		m.EachHeader(func(name, value string) { headers[name] = value })
		var err error
		if confirmations[i], err = channel.PublishWithDeferredConfirm("", queue, true, false, amqp.Publishing{
			Headers: headers, DeliveryMode: amqp.Persistent, MessageId: id, ContentType: m.ContentType, Body: m.Payload,
		}); err != nil {
			return err
		}
	}
	return confirmed(ctx, confirmations)
}

func confirmed(ctx context.Context, confirmations []*amqp.DeferredConfirmation) error {
	for _, c := range confirmations {
		ok, err := c.WaitContext(ctx)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("RabbitMQ has refused message %d", c.DeliveryTag)
		}
	}
	return nil
}
