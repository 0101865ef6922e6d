package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/outbox"
)

// Declare creates what of t does not exist, and checks that the rest is as t
// says, whatever t.Declare is; for a deployment step, or a test. One try,
// bounded by ctx. Its error wraps ErrInvalidConfig, outbox.ErrUnavailable or
// ErrMismatch.
func Declare(ctx context.Context, server ConnectionConfig, t Topology) error {
	t.Declare = true
	return withSession(ctx, "rabbitmq.Declare", server, t, func(s *session, t *topology) error { return t.apply(ctx, s) })
}

// withSession runs f on a connection of its own.
func withSession(ctx context.Context, what string, server ConnectionConfig, t Topology, f func(*session, *topology) error) error {
	at, faults := server.endpoint()
	c, more := t.compile()
	if faults = append(faults, more...); len(faults) > 0 {
		return fmt.Errorf("%s: %w: %w", what, ErrInvalidConfig, errors.Join(faults...))
	}
	conn := newConnection(at, slog.New(slog.DiscardHandler))
	defer conn.close(closeGrace)
	s, err := conn.session(ctx)
	if err != nil {
		return err
	}
	return f(s, c)
}

// apply declares or checks everything on a session.
func (t *topology) apply(ctx context.Context, s *session) error {
	if t == nil {
		return nil
	}
	since := versionOf(s.conn.Properties)
	for _, e := range t.exchanges {
		if err := t.exchange(ctx, s, e); err != nil {
			return err
		}
	}
	for _, q := range t.queues {
		if err := t.queue(ctx, s, q, since); err != nil {
			return err
		}
	}
	return nil
}

func (t *topology) exchange(ctx context.Context, s *session, e Exchange) error {
	err := s.passively(ctx, func(ch *amqp.Channel) error {
		if !t.declare {
			return ch.ExchangeDeclarePassive(e.Name, e.Kind.String(), true, false, false, false, nil)
		}
		args := amqp.Table{}
		if e.Alternate != "" {
			args["alternate-exchange"] = e.Alternate
		}
		return ch.ExchangeDeclare(e.Name, e.Kind.String(), true, false, false, false, args)
	})
	return t.told("exchange", e.Name, err)
}

func (t *topology) queue(ctx context.Context, s *session, q Queue, on version) error {
	err := s.passively(ctx, func(ch *amqp.Channel) error {
		if !t.declare {
			_, err := ch.QueueDeclarePassive(q.Name, true, false, false, false, nil)
			return err
		}
		if _, err := ch.QueueDeclare(q.Name, true, false, false, false, q.arguments(on)); err != nil {
			return err
		}
		for _, b := range q.Bindings {
			if err := ch.QueueBind(q.Name, b.Key, b.Exchange, false, nil); err != nil {
				return err
			}
		}
		return nil
	})
	return t.told("queue", q.Name, err)
}

// arguments are what the queue is declared with.
func (q *Queue) arguments(on version) amqp.Table {
	args := make(amqp.Table, len(q.Arguments)+8)
	for name, value := range q.Arguments {
		args[name] = value
	}
	quorum := q.Type == Quorum && !on.before(3, 8)
	if quorum {
		args["x-queue-type"] = "quorum"
		if q.DeliveryLimit > 0 {
			args["x-delivery-limit"] = int64(q.DeliveryLimit)
		}
		if q.DeliveryLimit < 0 && !on.before(4, 0) {
			args["x-delivery-limit"] = int64(-1) // RabbitMQ 4 has a limit of 20 where none is given
		}
	}
	if q.SingleActiveConsumer {
		args["x-single-active-consumer"] = true
	}
	if q.MaxLength > 0 {
		args["x-max-length"] = int64(q.MaxLength)
	}
	if q.MaxLengthBytes > 0 {
		args["x-max-length-bytes"] = int64(q.MaxLengthBytes)
	}
	switch q.Overflow {
	case RejectPublish:
		args["x-overflow"] = "reject-publish"
	case DeadLetterOldest:
		args["x-overflow"] = "drop-head"
	}
	if q.NoDeadLetterLosesMessages {
		return args
	}
	args["x-dead-letter-exchange"] = q.DeadLetter.Exchange
	switch {
	case q.DeadLetter.Queue != "":
		args["x-dead-letter-routing-key"] = q.DeadLetter.Queue
	case q.DeadLetter.RoutingKey != "":
		args["x-dead-letter-routing-key"] = q.DeadLetter.RoutingKey
	}
	if quorum && !on.before(3, 10) && q.Overflow != DeadLetterOldest {
		// A dead letter leaves this queue only when the other one has confirmed it.
		// RabbitMQ asks for reject-publish with it, which without a bound does nothing.
		args["x-dead-letter-strategy"] = "at-least-once"
		args["x-overflow"] = "reject-publish"
	}
	return args
}

// differs is how RabbitMQ says that something exists with other properties:
// rabbit_misc:assert_args_equivalence.
var differs = regexp.MustCompile(`inequivalent arg '([^']*)' for \w+ '.*' in vhost '.*': received (.*) but current is (.*)$`)

// told makes one sentence of what the server says about a thing.
func (t *topology) told(what, name string, err error) error {
	var refusal *amqp.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("look for %s %q: %w", what, name, err)
	case !errors.As(err, &refusal) || !refusal.Server:
		return fmt.Errorf("%w: look for %s %q: %w", outbox.ErrUnavailable, what, name, err)
	case refusal.Code == amqp.NotFound && !t.declare:
		return fmt.Errorf("%s %q: %w; declare it (Topology.Declare), or correct the name", what, name, ErrMissing)
	case refusal.Code == amqp.PreconditionFailed:
		if m := differs.FindStringSubmatch(refusal.Reason); m != nil {
			return fmt.Errorf("%s %q: %w: its %s is %s, the topology says %s; change the topology, or delete the %s (and lose what is in it) and let it be declared again",
				what, name, ErrMismatch, m[1], current(m[3]), current(m[2]), what)
		}
		return fmt.Errorf("%s %q: %w: %w", what, name, ErrMismatch, tidy(err))
	}
	return fmt.Errorf("declare %s %q: %w", what, name, tidy(err))
}

// current makes RabbitMQ's "the value '10' of type 'signedint'" shorter.
func current(text string) string {
	if m := valueOfType.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return text
}

var valueOfType = regexp.MustCompile(`^the value (.*) of type '.*'$`)
