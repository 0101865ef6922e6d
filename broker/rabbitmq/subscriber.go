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
)

var _ message.Subscriber = (*Subscriber)(nil)

// Subscriber consumes from RabbitMQ's queues. Safe for use by several
// goroutines. It has one connection of its own, made when it is first needed,
// with a channel for each Subscribe.
type Subscriber struct {
	cfg       SubscriberConfig // with the defaults filled in, and no Connection
	conn      *connection
	topo      *preparation
	dead      map[string]bool // by queue of the topology: whether it dead-letters
	abandoned atomic.Int64    // messages that a handler still held when its time to close was over

	mu     sync.Mutex
	closed bool
	subs   map[*subscription]context.CancelFunc // stops reading
	live   sync.WaitGroup
}

// SubscriberConfig: only Connection is required.
type SubscriberConfig struct {
	// Connection says how to reach the server.
	Connection ConnectionConfig

	// Group names who shares the work: the queue of a topic is topic + "_" + Group,
	// as with watermill-amqp's GenerateQueueNameTopicNameWithSuffix. Without one the
	// queue is named as the topic.
	Group string

	// QueueName takes the place of Group.
	QueueName func(topic string) string

	// Topology is declared, or checked, on every connection before consuming.
	// Without one the queue must be there.
	Topology *Topology

	// MaxInFlight is how many messages of one Subscribe are with handlers at once,
	// one per partition key at a time and in order. Defaults to 10, at most 10,000.
	MaxInFlight int

	// Prefetch is how many messages RabbitMQ sends ahead of their acknowledgement
	// (basic.qos), those with handlers included. Defaults to MaxInFlight, at
	// most 65,535. More helps where many share a key; what is prefetched here is
	// not handled elsewhere.
	Prefetch int

	// NackDelay is the pause before a message that was nacked is handed over again,
	// in place and before any other of its key; it doubles with every further
	// nack up to MaxNackDelay. Default to 100 ms and 30 s.
	NackDelay    time.Duration
	MaxNackDelay time.Duration

	// DeadLetterAfter is how many nacks of one message, in a row and in this process, have it
	// given up: nacked without requeue, which has RabbitMQ dead-letter it. Defaults to
	// never: handlers.Router has a poison queue, and nacks only what is to be
	// tried again. The queue must dead-letter: the Topology says so, or
	// QueuesDeadLetter.
	DeadLetterAfter int
	// QueuesDeadLetter says of queues that are not in Topology that each has a
	// dead-letter exchange. If that is wrong, RabbitMQ throws away what is given up.
	QueuesDeadLetter bool

	// ConsumerTimeout is the server's consumer_timeout: a message that has not been
	// acknowledged for that long ends the channel, and all that is in flight on it comes
	// again. Defaults to 30 min, RabbitMQ's own default since 3.8.17; what
	// rabbitmq.conf says if it says something else.
	ConsumerTimeout time.Duration

	// HandlerLimit is how long a handler takes at most, with its own repeats
	// (handlers.RetryConfig.MaxElapsed). Defaults to a tenth of ConsumerTimeout; at most half
	// of it. If a message has waited here, behind others or for another attempt,
	// until three quarters of the difference have passed, the handlers finish, and everything else
	// goes back into the queue, in order, and comes anew.
	HandlerLimit time.Duration

	// CloseTimeout is how long Close, or the end of Subscribe's context, waits for
	// the handlers in flight before it cancels the messages' contexts. Defaults to 30 s.
	CloseTimeout time.Duration

	// Logger is told what a person on call wants to know: once when consuming breaks
	// and once when it resumes. Never payloads. Defaults to slog.Default().
	Logger *slog.Logger
}

const (
	defaultMaxInFlight     = 10
	maxMaxInFlight         = 10_000
	maxPrefetch            = 65_535 // a 16-bit number in basic.qos
	defaultNackDelay       = 100 * time.Millisecond
	defaultMaxNackDelay    = 30 * time.Second
	defaultCloseTimeout    = 30 * time.Second
	defaultConsumerTimeout = 30 * time.Minute

	// subscribeTimeout bounds Subscribe beside its context.
	subscribeTimeout = 30 * time.Second
)

// NewSubscriber checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault.
func NewSubscriber(cfg SubscriberConfig) (*Subscriber, error) {
	at, faults := cfg.Connection.endpoint()
	topology, more := cfg.Topology.compile()
	faults = append(faults, more...)
	faults = append(faults, cfg.settle()...)
	if len(faults) > 0 {
		return nil, fmt.Errorf("rabbitmq.NewSubscriber: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	cfg.Connection, cfg.Topology = ConnectionConfig{}, nil // their secrets and slices are not ours to keep
	s := &Subscriber{cfg: cfg, conn: newConnection(at, cfg.Logger), topo: newPreparation(topology),
		dead: make(map[string]bool), subs: make(map[*subscription]context.CancelFunc)}
	if topology != nil {
		for _, q := range topology.queues {
			s.dead[q.Name] = !q.NoDeadLetterLosesMessages
		}
	}
	return s, nil
}

// settle fills in the defaults and finds what is wrong.
func (cfg *SubscriberConfig) settle() (faults []error) {
	fault := func(field, format string, args ...any) {
		faults = append(faults, fmt.Errorf("SubscriberConfig."+field+" "+format, args...))
	}
	if cfg.Group != "" && cfg.QueueName != nil {
		fault("Group", "and QueueName both name the queue: leave one of them out")
	}
	if cfg.QueueName == nil {
		group := cfg.Group
		cfg.QueueName = func(topic string) string {
			if group == "" {
				return topic
			}
			return topic + "_" + group
		}
	}
	orDefault(&cfg.MaxInFlight, defaultMaxInFlight)
	orDefault(&cfg.Prefetch, cfg.MaxInFlight)
	orDefault(&cfg.NackDelay, defaultNackDelay)
	orDefault(&cfg.MaxNackDelay, max(defaultMaxNackDelay, cfg.NackDelay))
	orDefault(&cfg.CloseTimeout, defaultCloseTimeout)
	orDefault(&cfg.ConsumerTimeout, defaultConsumerTimeout)
	orDefault(&cfg.HandlerLimit, cfg.ConsumerTimeout/10)
	if cfg.MaxInFlight < 1 || cfg.MaxInFlight > maxMaxInFlight {
		fault("MaxInFlight", "is %d: give a number from 1 to %d, or 0 for %d", cfg.MaxInFlight, maxMaxInFlight, defaultMaxInFlight)
	}
	if cfg.Prefetch < cfg.MaxInFlight || cfg.Prefetch > maxPrefetch {
		fault("Prefetch", "is %d: without a bound RabbitMQ sends the whole queue, and fewer than MaxInFlight (%d) leave handlers idle; "+
			"give a number from MaxInFlight to %d, or 0 for MaxInFlight", cfg.Prefetch, cfg.MaxInFlight, maxPrefetch)
	}
	if cfg.DeadLetterAfter < 0 {
		fault("DeadLetterAfter", "is %d: give a number of nacks, or 0 for never", cfg.DeadLetterAfter)
	}
	for _, d := range []struct {
		name         string
		value, least time.Duration
	}{
		{"NackDelay", cfg.NackDelay, time.Millisecond},
		{"MaxNackDelay", cfg.MaxNackDelay, cfg.NackDelay},
		{"CloseTimeout", cfg.CloseTimeout, time.Millisecond},
		{"ConsumerTimeout", cfg.ConsumerTimeout, time.Second},
		{"HandlerLimit", cfg.HandlerLimit, time.Millisecond},
	} {
		if d.value < d.least {
			fault(d.name, "is %s: give at least %s, or 0 for the default", d.value, d.least)
		}
	}
	if cfg.HandlerLimit > cfg.ConsumerTimeout/2 {
		fault("HandlerLimit", "is %s, the server's consumer_timeout %s: RabbitMQ would end the channel before a second attempt is over, and "+
			"everything in flight on it would be handled again; let handlers take less, or raise consumer_timeout in rabbitmq.conf and ConsumerTimeout here",
			cfg.HandlerLimit, cfg.ConsumerTimeout)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return faults
}

func orDefault[V int | time.Duration](v *V, value V) {
	if *v == 0 {
		*v = value
	}
}

// Subscribe consumes from the topic's queue and hands over its messages,
// MaxInFlight at once, those of one partition key one by one and in order. A
// message that is nacked comes again, in place, after a pause. Every message has
// a context of its own, with the values of ctx, cancelled when the message is
// settled, when RabbitMQ has taken it back (ErrLost), or when closing has taken
// too long. Metadata says the queue, the exchange, the routing key and the
// delivery count; a message that cannot be read comes with HeaderUndecodable.
//
// The end of ctx stops this subscription as Close would. The channel is closed
// when the last message is settled. Errors: ErrClosed, ErrMissing, ErrMismatch,
// outbox.ErrUnavailable, or what the server answered; once Subscribe has returned,
// it goes on through any trouble, also the queue's removal.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	queue := s.cfg.QueueName(topic)
	if fault := nameFault(queue); fault != "" {
		return nil, fmt.Errorf("subscribe to topic %q: the name of its queue, %q, %s", topic, queue, fault)
	}
	if deadLetters, known := s.dead[queue]; s.cfg.DeadLetterAfter > 0 && !deadLetters && (known || !s.cfg.QueuesDeadLetter) {
		return nil, fmt.Errorf("subscribe to queue %q: DeadLetterAfter is set, and nothing says that the queue dead-letters: RabbitMQ would throw away what is given up; "+
			"give the queue in SubscriberConfig.Topology, or insist with QueuesDeadLetter", queue)
	}
	reading, stop := context.WithCancel(ctx)
	sub, err := s.join(ctx, topic, queue, stop)
	if err != nil {
		stop()
		return nil, fmt.Errorf("subscribe to queue %q: %w", queue, err)
	}
	bounded, cancel := context.WithTimeout(reading, subscribeTimeout)
	defer cancel()
	first, err := sub.consume(bounded)
	if err != nil {
		if reading.Err() != nil && ctx.Err() == nil {
			err = ErrClosed // meanwhile
		}
		sub.room.Close()
		s.leave(sub)
		return nil, fmt.Errorf("subscribe to queue %q: %w", queue, err)
	}
	go func() {
		defer s.leave(sub)
		sub.run(reading, first)
	}()
	return sub.room.Out(), nil
}

func (s *Subscriber) join(ctx context.Context, topic, queue string, stop context.CancelFunc) (*subscription, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	sub := newSubscription(s, ctx, topic, queue)
	s.subs[sub] = stop
	s.live.Add(1)
	return sub, nil
}

func (s *Subscriber) leave(sub *subscription) {
	s.mu.Lock()
	stop := s.subs[sub]
	delete(s.subs, sub)
	s.mu.Unlock()
	stop()
	s.live.Done()
}

// Close stops reading, waits for the handlers in flight and acknowledges what
// they have done, and returns when all channels are closed. A handler that takes
// longer than CloseTimeout has its context cancelled; what it held is delivered
// again: Close then returns ErrCloseTimeout. What no handler had goes back
// into the queue, in order. Close may be called more than once, and at any time.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, stop := range s.subs {
		stop()
	}
	s.mu.Unlock()
	s.live.Wait() // bounded by CloseTimeout, and rpcTimeout for the server
	s.conn.close(closeGrace)
	if n := s.abandoned.Load(); n > 0 {
		return fmt.Errorf("%w for %d handlers after %s; give SubscriberConfig.CloseTimeout more, or let them heed their context",
			ErrCloseTimeout, n, s.cfg.CloseTimeout)
	}
	return nil
}
