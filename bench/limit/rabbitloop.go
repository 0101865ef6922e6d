package limit

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/events"
)

// RabbitLoop is the limit of drain.rabbitmq: one streaming SELECT, and amqp091-go's
// deferred confirms, a thousand messages with the headers that watermill-amqp writes. It reads
// ahead of its sending, and sends a batch before it waits for the confirmations of the one before;
// it has no cursor and no lanes, and knows of no failure but the first. It gives events a
// second.
func RabbitLoop(ctx context.Context, pool *pgxpool.Pool, channel *amqp.Channel, table, queue string, rows int) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	batches, failure := readAhead(ctx, pool, table, rows, 1000, func(r *row) (amqp.Publishing, error) {
		id := r.event.String()
		return amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: id, ContentType: r.contentType, Body: r.payload, Headers: amqp.Table{
			"_watermill_message_uuid": id, events.HeaderEventType: r.eventType, events.HeaderSchemaVersion: strconv.Itoa(int(r.version)),
			events.HeaderPartitionKey: r.key, events.HeaderContentType: r.contentType, events.HeaderPosition: anySource + strconv.FormatInt(r.id, 10),
		}}, nil
	})
	var before []*amqp.DeferredConfirmation
	for batch := range batches {
		confirmations := make([]*amqp.DeferredConfirmation, len(batch))
		for i, publishing := range batch {
			var err error
			if confirmations[i], err = channel.PublishWithDeferredConfirm("", queue, true, false, publishing); err != nil {
				return 0, err
			}
		}
		if err := confirmed(ctx, before); err != nil {
			return 0, err
		}
		before = confirmations
	}
	if err := confirmed(ctx, before); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := failure(); err != nil {
		return 0, err
	}
	return float64(rows) / took.Seconds(), nil
}
