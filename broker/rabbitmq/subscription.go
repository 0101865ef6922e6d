package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
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
	telling sync.Mutex
	results []inflight.Result[*delivery] // of telling
	down    bool                         // consuming is broken, and that has been said
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

// nacked: again in place, unless it is to be given up. RabbitMQ would put it back
// where it was, but send it again behind what is on its way to us already.
func (s *subscription) nacked(d *delivery, attempt int) inflight.Verdict {
	if s.of.cfg.DeadLetterAfter > 0 && attempt >= s.of.cfg.DeadLetterAfter {
		d.dead = true
		return inflight.GiveBack
	}
	return inflight.Retry
}

// patience is how long a message may wait here: the handlers get HandlerLimit to
// finish when it is over, before the server loses its own.
func (s *subscription) patience() time.Duration {
	return (s.of.cfg.ConsumerTimeout - s.of.cfg.HandlerLimit) * 3 / 4
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
		if why == errStale {
			s.retire(reading, c)
		}
		if reading.Err() != nil {
			break // c is still good for acknowledgements
		}
		s.lose(c)
		if why == errStale {
			c = nil
			continue
		}
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

// errStale: a message has waited here for so long that the server will not wait
// until it is handled.
var errStale = errors.New("messages have waited here for too long")

// retire lets the handlers finish, and hands over nothing more. All else
// goes back into the queue when the channel closes: in order, with what was on its
// way to us.
func (s *subscription) retire(reading context.Context, c *consumer) {
	ours := func(d *delivery) bool { return d.from == c }
	s.room.Withdraw(ours)
	bounded, cancel := context.WithTimeout(reading, s.of.cfg.HandlerLimit)
	defer cancel()
	go func() { // it may break still
		select {
		case <-c.ended():
			cancel()
		case <-bounded.Done():
		}
	}()
	_ = s.room.Await(bounded, ours) // else they are lost
	s.takeAndTell()
}

// close lets the handlers finish. What they have not had stays with the consumer
// unacknowledged, and goes back into the queue in order when its channel closes,
// before anybody else gets what is behind it.
func (s *subscription) close(c *consumer) {
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
	look := time.NewTicker(s.patience() / 8)
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
			if s.stale() {
				return errStale
			}
		case <-reading.Done():
			return nil
		}
	}
}

// stale tells whether a message has waited for too long.
func (s *subscription) stale() (found bool) {
	s.room.Each(func(d *delivery, handed bool) {
		found = found || !handed && time.Since(d.since) > s.patience()
	})
	return found
}

// settle tells the server what became of messages, each by itself: multiple
// would acknowledge those that are still being handled.
func (s *subscription) settle() {
	for range s.room.Changed() {
		s.takeAndTell()
	}
	s.takeAndTell()
}

func (s *subscription) takeAndTell() {
	s.telling.Lock()
	defer s.telling.Unlock()
	s.results = s.room.Take(s.results[:0])
	for _, r := range s.results {
		d := r.Token
		switch { // an error means that the channel is gone, and the message comes again
		case r.Outcome == inflight.Acked:
			d.from.ch.Ack(d.DeliveryTag, false)
			d.from.told.Store(true)
		case d.dead:
			d.from.ch.Nack(d.DeliveryTag, false, false)
			d.from.told.Store(true)
			s.log.Warn("a message is given up and dead-lettered", "message", d.MessageId, "nacks", s.of.cfg.DeadLetterAfter)
		} // else it goes back when its channel closes
	}
	clear(s.results)
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
	c := &consumer{s: sess, queue: s.queue, prefetch: s.of.cfg.Prefetch, over: make(chan struct{})}
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
