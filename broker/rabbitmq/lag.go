package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/outbox"
)

// Lag is how far the consumers of one queue are behind.
type Lag struct {
	Queue     string
	Messages  int64 // that are not handled: the sum of the next two
	Ready     int64 // waiting in the queue
	Held      int64 // with this Subscriber, and not acknowledged; what other processes hold, RabbitMQ does not tell
	Consumers int   // of the queue, in all processes

	// Oldest is the age of the oldest message that this Subscriber holds, since it was
	// published by its timestamp (whole seconds), or else since it came; 0 if it
	// holds none. A queue hands out its oldest first, so what waits is younger, save
	// for what another process holds. RabbitMQ tells no more: looking at the head
	// of a queue means to take it out, and put it back out of turn.
	Oldest time.Duration
}

// Lag asks RabbitMQ about every queue that is subscribed to, in the order of
// their names. Errors wrap outbox.ErrUnavailable or tell what the server answered,
// joined; the queues that were found are in the list all the same.
func (s *Subscriber) Lag(ctx context.Context) ([]Lag, error) {
	s.mu.Lock()
	of := make(map[string][]*subscription)
	for sub := range s.subs {
		of[sub.queue] = append(of[sub.queue], sub)
	}
	s.mu.Unlock()
	var all []Lag
	var errs []error
	for queue, subs := range of {
		l, err := subs[0].lag(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, sub := range subs {
			held, oldest := sub.held()
			l.Held += held
			l.Oldest = max(l.Oldest, oldest)
		}
		l.Queue, l.Messages = queue, l.Ready+l.Held
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Lag) int { return strings.Compare(a.Queue, b.Queue) })
	return all, errors.Join(errs...)
}

func (s *subscription) lag(ctx context.Context) (Lag, error) {
	c := s.present.Load()
	if c == nil {
		return Lag{}, fmt.Errorf("ask for the lag of queue %q: %w: it is not being consumed at the moment", s.queue, outbox.ErrUnavailable)
	}
	q, err := lookAt(ctx, c.s, s.queue)
	if err != nil {
		return Lag{}, fmt.Errorf("ask for the lag of %w", err)
	}
	return Lag{Ready: int64(q.Messages), Consumers: q.Consumers}, nil
}

func (s *subscription) held() (n int64, oldest time.Duration) {
	s.room.Each(func(d *delivery, _ bool) {
		n++
		since := d.since
		if t := d.Timestamp; !t.IsZero() && t.Before(since) {
			since = t
		}
		oldest = max(oldest, time.Since(since))
	})
	return n, oldest
}

// lookAt asks for the counts of a queue. Its error begins with the queue.
func lookAt(ctx context.Context, s *session, queue string) (q amqp.Queue, err error) {
	var found amqp.Queue
	err = s.passively(ctx, func(ch *amqp.Channel) (err error) {
		found, err = ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		return err
	})
	if err != nil {
		return q, wrapMissing(fmt.Sprintf("queue %q", queue), err)
	}
	return found, nil
}
