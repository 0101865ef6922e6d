package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/broker/rabbitmq"
	"github.com/postbus/postbus/outbox"
)

var onRabbitMQ = broker{
	name: "rabbitmq", server: harness.RabbitMQ, open: openRabbitMQ,
	publish: size{30_000, 5000}, drain: size{30_000, 5000}, consume: size{30_000, 5000},
	publishNote: "amqp091-go's deferred confirms on one channel, waited for after each 1,000. A quorum queue, mandatory, persistent. stock: durable, with confirms, which it has to be asked for",
	drainNote:   "amqp091-go's deferred confirms, 1,000 messages beyond those that are waited for",
	consumeNote: fmt.Sprintf("amqp091-go's deliveries of a quorum queue with a prefetch of %d, as ours has", rabbitPrefetch),
}

const rabbitPrefetch = 256

// rabbitSite is a quorum queue, published to through the default exchange.
type rabbitSite struct {
	url     string
	name    string
	conn    *amqp.Connection
	admin   *amqp.Channel
	confirm *amqp.Channel
}

func openRabbitMQ(_ context.Context, name string) (site, error) {
	s := &rabbitSite{url: harness.RabbitMQ.URL(), name: name}
	var err error
	if s.conn, err = amqp.Dial(s.url); err != nil {
		return nil, err
	}
	if s.admin, err = s.conn.Channel(); err != nil {
		return s, err
	}
	if s.confirm, err = s.conn.Channel(); err != nil {
		return s, err
	}
	if err := s.confirm.Confirm(false); err != nil {
		return s, err
	}
	_, err = s.admin.QueueDeclare(name, true, false, false, false, peer.QuorumQueue)
	return s, err
}

func (s *rabbitSite) topic() string { return s.name }
func (s *rabbitSite) takesOut()     {}

// empty waits for consumers to go, since what they have comes back.
func (s *rabbitSite) empty(ctx context.Context) error {
	for giveUp := time.Now().Add(10 * time.Second); ; {
		queue, err := s.admin.QueueDeclarePassive(s.name, true, false, false, false, nil)
		switch {
		case err != nil:
			return err
		case queue.Consumers == 0:
			_, err := s.admin.QueuePurge(s.name, false)
			return err
		case time.Now().After(giveUp):
			return errors.New("there are still consumers of the bench's queue")
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *rabbitSite) held(context.Context) (int, error) {
	queue, err := s.admin.QueueDeclarePassive(s.name, true, false, false, false, nil)
	return queue.Messages, err
}

func (s *rabbitSite) unread(context.Context) error          { return nil }
func (s *rabbitSite) left(ctx context.Context) (int, error) { return s.held(ctx) }

// forgets: when a channel is closed, RabbitMQ 3.10 drops acknowledgements that it had
// accepted on it and not passed on to the quorum queue yet, whoever the client is. The
// messages come again.
func (s *rabbitSite) forgets() int { return rabbitPrefetch }

func (s *rabbitSite) remove(context.Context) error {
	defer s.conn.Close()
	ch, err := s.conn.Channel() // the other one may have been closed by an error
	if err != nil {
		return err
	}
	_, err = ch.QueueDelete(s.name, false, false, false)
	return err
}

func (s *rabbitSite) publisher() (ourPublisher, error) {
	return rabbitmq.NewPublisher(rabbitmq.PublisherConfig{Connection: rabbitmq.ConnectionConfig{URL: s.url},
		Kind: rabbitmq.DefaultExchange, Logger: workload.Warnings})
}

func (s *rabbitSite) subscriber(inFlight int) (message.Subscriber, error) {
	return rabbitmq.NewSubscriber(rabbitmq.SubscriberConfig{Connection: rabbitmq.ConnectionConfig{URL: s.url},
		MaxInFlight: inFlight, Prefetch: rabbitPrefetch, Logger: workload.Warnings})
}

func (s *rabbitSite) rawPublish(ctx context.Context, msgs []*outbox.Message) error {
	return limit.RabbitPublish(ctx, s.confirm, s.name, msgs)
}

func (s *rabbitSite) rawDrain(ctx context.Context, e *harness.Env, rows int) (float64, error) {
	return limit.RabbitLoop(ctx, e.Pool, s.confirm, e.Table("outbox"), s.name, rows)
}

func (s *rabbitSite) rawConsume(ctx context.Context, out chan<- *message.Message) error {
	conn, err := amqp.Dial(s.url)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	return errors.Join(limit.RabbitConsume(ctx, ch, s.name, rabbitPrefetch, out), ch.Close())
}

func (s *rabbitSite) stockPublisher() (message.Publisher, error) {
	return peer.RabbitMQPublisher(s.url)
}
func (s *rabbitSite) stockSubscriber() (message.Subscriber, error) {
	return peer.RabbitMQSubscriber(s.url)
}
