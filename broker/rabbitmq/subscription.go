package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/internal/inflight"
)

// A subscription is one consumer of one queue, through all its channels. Its own
// goroutine reads, another one acknowledges; the room between them and the
// handlers keeps the keys in order.
type subscription struct {
	of    *Subscriber
	topic string
	queue string
	room  *inflight.Room[*delivery]
	log   *slog.Logger

	present atomic.Pointer[consumer] // nil while there is none
	closing atomic.Bool
	down    bool // consuming is broken, and that has been said
	pauses  *backoff.ExponentialBackOff
}

func newSubscription(s *Subscriber, ctx context.Context, topic, queue string) *subscription {
	sub := &subscription{of: s, topic: topic, queue: queue, log: s.cfg.Logger.With("queue", queue),
		pauses: &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.5,
			Multiplier: 2, MaxInterval: 5 * time.Second}}
	sub.room = inflight.New(ctx, inflight.Config[*delivery]{
		Build:        func(d *delivery, attempt int) *message.Message { return d.message(attempt) },
		Nacked:       sub.nacked,
		MaxInFlight:  s.cfg.MaxInFlight,
		MaxBuffered:  s.cfg.Prefetch,
		NackDelay:    s.cfg.NackDelay,
		MaxNackDelay: s.cfg.MaxNackDelay,
		CloseTimeout: s.cfg.CloseTimeout,
		CloseCause:   ErrCloseTimeout,
	})
	return sub
}

// nacked: again in place, unless it is to be given up, or has been here for so
// long that the server will lose its patience.
func (s *subscription) nacked(d *delivery, attempt int) inflight.Verdict {
	switch {
	case s.of.cfg.DeadLetterAfter > 0 && attempt >= s.of.cfg.DeadLetterAfter:
		d.dead = true
		return inflight.GiveBack
	case time.Since(d.since) > s.patience():
		return inflight.GiveBackKey
	}
	return inflight.Retry
}

// patience is how long a message may have been here when it is handed over.
func (s *subscription) patience() time.Duration {
	return s.of.cfg.ConsumerTimeout - s.of.cfg.HandlerLimit
}

func (s *subscription) run(reading context.Context, first *consumer) {
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		s.settle()
	}()
	c := first
	for reading.Err() == nil {
		if c == nil {
			if c = s.again(reading); c == nil {
				break
			}
		}
		s.present.Store(c)
		why := s.read(reading, c)
		if why == nil {
			break // reading has ended; c is still good for acknowledgements
		}
		s.lose(c)
		s.broken(reading, why)
		c = nil
	}
	s.close(c)
	<-settled
	if c != nil {
		c.close()
	}
}

// lose: what this consumer had, others may have now.
func (s *subscription) lose(c *consumer) {
	s.present.Store(nil)
	s.room.Lose(func(d *delivery) bool { return d.from == c }, ErrLost)
	c.close()
}

// close lets the handlers finish. What they have not had stays with the consumer
// unacknowledged, and goes back into the queue in order when its channel closes,
// before anybody else gets what is behind it.
func (s *subscription) close(c *consumer) {
	s.closing.Store(true)
	drained := make(chan struct{})
	if c != nil {
		go func() { // it may break still
			select {
			case <-c.ended():
				s.room.Lose(func(d *delivery) bool { return d.from == c }, ErrLost)
			case <-drained:
			}
		}()
	}
	abandoned := s.room.Close()
	close(drained)
	if n := len(abandoned); n > 0 {
		s.of.abandoned.Add(int64(n))
		s.log.Warn("handlers have not come back in time to close; their messages are delivered again", "messages", n)
	}
}

// read takes in what the consumer gets, until reading ends (nil) or the consumer
// does. Nothing waits for room: the prefetch is the bound.
func (s *subscription) read(reading context.Context, c *consumer) error {
	look := time.NewTicker(s.patience() / 10)
	defer look.Stop()
	batch := make([]inflight.Delivery[*delivery], 0, 64)
	for {
		select {
		case d, ok := <-c.deliveries:
			if !ok {
				return c.why()
			}
			s.working()
			batch = append(batch[:0], c.take(d))
			for more := true; more && len(batch) < cap(batch); {
				select {
				case d, ok := <-c.deliveries:
					if more = ok; ok {
						batch = append(batch, c.take(d))
					}
				default:
					more = false
				}
			}
			if s.room.Add(batch) != nil {
				return nil // closed: cannot be, that is ours to do
			}
		case <-c.cancelled:
			return errCancelled
		case <-look.C:
			s.putBackOld()
		case <-reading.Done():
			return nil
		}
	}
}

// putBackOld gives back what has waited for so long that the server would lose its
// patience while it is handled, and with it all of its key that waits.
func (s *subscription) putBackOld() {
	var old map[string]bool
	s.room.Each(func(d *delivery, handed bool) {
		if !handed && time.Since(d.since) > s.patience() {
			if old == nil {
				old = make(map[string]bool)
			}
			old[d.key()] = true
		}
	})
	if old != nil {
		s.room.Withdraw(func(d *delivery) bool { return old[d.key()] })
	}
}

// settle tells the server what became of messages, each by itself: multiple
// would acknowledge those that are still being handled.
func (s *subscription) settle() {
	var results []inflight.Result[*delivery]
	for range s.room.Changed() {
		results = s.tell(s.room.Take(results[:0]))
	}
	s.tell(s.room.Take(nil))
}

func (s *subscription) tell(results []inflight.Result[*delivery]) []inflight.Result[*delivery] {
	for i, r := range results {
		d := r.Token
		switch { // an error means that the channel is gone, and the message comes again
		case r.Outcome == inflight.Acked:
			d.from.ch.Ack(d.DeliveryTag, false)
		case d.dead:
			d.from.ch.Nack(d.DeliveryTag, false, false)
			s.log.Warn("a message is given up and dead-lettered", "message", d.MessageId, "nacks", s.of.cfg.DeadLetterAfter)
		case !s.closing.Load():
			d.from.ch.Nack(d.DeliveryTag, false, true)
		}
		results[i] = inflight.Result[*delivery]{}
	}
	return results
}

// consume begins to: a channel, the topology, the prefetch and the consumer.
func (s *subscription) consume(ctx context.Context) (*consumer, error) {
	sess, err := s.of.conn.session(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.of.topo.prepare(ctx, sess); err != nil {
		return nil, err
	}
	c := &consumer{s: sess, queue: s.queue, over: make(chan struct{})}
	err = sess.open(ctx, func(ch *amqp.Channel) error {
		c.ch = ch
		c.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
		c.cancelled = ch.NotifyCancel(make(chan string, 1))
		if err := ch.Qos(s.of.cfg.Prefetch, 0, false); err != nil {
			return err
		}
		c.deliveries, err = ch.Consume(s.queue, "", false, false, false, false, nil)
		return err
	})
	if err != nil {
		var refusal *amqp.Error
		if errors.As(err, &refusal) && refusal.Code == amqp.NotFound {
			s.of.topo.forget() // declared again at the next try
			return nil, fmt.Errorf("%w; declare it (SubscriberConfig.Topology), or correct topic and Group", ErrMissing)
		}
		return nil, tidy(err)
	}
	go c.watch()
	return c, nil
}

// again consumes anew, through any trouble, until reading ends (nil).
func (s *subscription) again(reading context.Context) *consumer {
	for reading.Err() == nil {
		bounded, cancel := context.WithTimeout(reading, subscribeTimeout)
		c, err := s.consume(bounded)
		cancel()
		if err == nil {
			return c
		}
		if reading.Err() == nil {
			s.broken(reading, err)
		}
	}
	return nil
}

// working and broken say a change of state once, however long it lasts.
func (s *subscription) working() {
	if s.down {
		s.down = false
		s.log.Info("consuming again")
	}
	s.pauses.Reset()
}

func (s *subscription) broken(reading context.Context, err error) {
	if !s.down && reading.Err() == nil {
		s.down = true
		s.log.Warn("consuming is interrupted and tried again", "error", err)
	}
	pause := time.NewTimer(s.pauses.NextBackOff())
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-reading.Done():
	}
}
