package redisstream

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

var _ message.Subscriber = (*Subscriber)(nil)

// Subscriber reads Redis streams as a member of a consumer group. Safe for use
// by several goroutines.
type Subscriber struct {
	cfg       SubscriberConfig // with the defaults filled in
	ownName   bool             // the consumer's name is ours: nobody will take it up again
	abandoned atomic.Int64     // entries that a handler still held when its time to close was over
	missing   atomic.Int64     // entries that were deleted before they were handled

	mu     sync.Mutex
	closed bool
	subs   map[member]context.CancelFunc // stops reading
	live   sync.WaitGroup
}

// A member is one Subscribe call.
type member interface {
	start(ctx context.Context) error
	run(base, reading context.Context)
	streams() []string
}

// SubscriberConfig: Client and Group are required.
type SubscriberConfig struct {
	// Client is a go-redis v9 client; it stays the caller's to close. Every
	// Subscribe holds one connection of its pool while it waits for entries, and
	// needs another one now and then: PoolSize must allow for both.
	Client redis.UniversalClient

	// Group names the consumer group: all who share the work of one stream. Every
	// group gets every entry.
	Group string

	// Consumer names this member of the group. Give it a name that the process
	// has again after a restart, and that no other living process has: what it had
	// in hand when it died is then delivered first, at once and in order. Without
	// one a fresh name is made, and another consumer takes over after MinIdle. The
	// second Subscribe to the same topic is Consumer + "/2", and so on.
	Consumer string

	// MaxInFlight bounds the messages that are with handlers at once: those of
	// different partition keys (the header events.HeaderPartitionKey), one of each
	// key at a time and in order; messages without a key in any order. Defaults to
	// 64. 1 hands over entry by entry, in the order of the stream whatever their
	// keys, and a message that was nacked before any other.
	MaxInFlight int

	// ReadAhead is how many entries are read before a handler is free for them, beyond MaxInFlight:
	// the more, the fewer round trips, and the more another consumer of the group
	// might have had. Defaults to 3 times MaxInFlight and at least 192, or to none if MaxInFlight
	// is 1; NoReadAhead is none.
	ReadAhead int

	// Shards is in how many streams the publishers divide a topic by partition key
	// (PublisherConfig.Shards), 256 at most; 0 is one stream of the topic's name. Each
	// shard is read by one member of the group at a time, who holds a lease on it, so
	// every key stays in order however many members come and go; MaxInFlight and
	// ReadAhead then are for each shard. MinIdle is how long a member must have been
	// silent before others take over its shards.
	Shards int

	// Start is where a group that does not exist yet begins. Defaults to
	// FromBeginning, so that nothing is missed.
	Start Start

	// MinIdle is how long a consumer must have been silent about an entry before
	// another one claims it. Handlers may take longer: what they hold is kept fresh
	// at a third of it. Defaults to 60 s; the same for all consumers of a group.
	MinIdle time.Duration

	// ClaimInterval is how often we look for such entries. Defaults to a quarter of MinIdle.
	ClaimInterval time.Duration

	// NackDelay is the pause before an entry that was nacked is handed over again,
	// to the same consumer and before any other of its key; it doubles with every
	// further nack up to MaxNackDelay. Default to 100 ms and 30 s.
	NackDelay    time.Duration
	MaxNackDelay time.Duration

	// CloseTimeout is how long Close, or the end of Subscribe's context, waits for
	// the handlers in flight before it cancels their messages' contexts. Defaults to 30 s.
	CloseTimeout time.Duration

	// Logger is told what a person on call wants to know: once when reading breaks
	// and once when it resumes, entries that were lost. Never payloads. Defaults to
	// slog.Default().
	Logger *slog.Logger
}

// Start is where a new consumer group begins to read.
type Start int

const (
	// FromBeginning: with the first entry of the stream.
	FromBeginning Start = iota
	// FromNow: with what is added after the group was created. Everything before is never handled.
	FromNow
)

func (s Start) String() string {
	switch s {
	case FromBeginning:
		return "from beginning"
	case FromNow:
		return "from now"
	}
	return "Start(" + strconv.Itoa(int(s)) + ")"
}

// NoReadAhead for SubscriberConfig.ReadAhead: nothing is read that no handler is free for.
const NoReadAhead = -1

const (
	defaultMaxInFlight = 64
	maxMaxInFlight     = 10_000
	leastReadAhead     = 192

	defaultMinIdle      = 60 * time.Second
	defaultNackDelay    = 100 * time.Millisecond
	defaultMaxNackDelay = 30 * time.Second
	defaultCloseTimeout = 30 * time.Second

	// minMinIdle: below it a garbage collection or a slow network would look like death.
	minMinIdle = 100 * time.Millisecond

	// answerTimeout bounds every call to Redis beyond what it waits for on purpose.
	answerTimeout = 5 * time.Second
)

// NewSubscriber checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault.
func NewSubscriber(cfg SubscriberConfig) (*Subscriber, error) {
	faults := clientFaults("SubscriberConfig", cfg.Client)
	if cfg.Group == "" {
		faults = append(faults, errors.New("SubscriberConfig.Group is empty: name who reads, for example the service; "+
			"without a group nobody remembers what was handled"))
	}
	if cfg.Start != FromBeginning && cfg.Start != FromNow {
		faults = append(faults, fmt.Errorf("SubscriberConfig.Start is %d: give FromBeginning or FromNow", cfg.Start))
	}
	if cfg.MaxInFlight < 0 || cfg.MaxInFlight > maxMaxInFlight {
		faults = append(faults, fmt.Errorf("SubscriberConfig.MaxInFlight is %d: give a number from 1 to %d, or 0 for %d",
			cfg.MaxInFlight, maxMaxInFlight, defaultMaxInFlight))
	}
	if cfg.ReadAhead < NoReadAhead || cfg.ReadAhead > 10*maxMaxInFlight {
		faults = append(faults, fmt.Errorf("SubscriberConfig.ReadAhead is %d: give a number from 1 to %d, NoReadAhead, or 0 for the default",
			cfg.ReadAhead, 10*maxMaxInFlight))
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = defaultMaxInFlight
	}
	if cfg.ReadAhead == 0 && cfg.MaxInFlight > 1 {
		cfg.ReadAhead = max(3*cfg.MaxInFlight, leastReadAhead)
	}
	faults = append(faults, shardFaults("SubscriberConfig", cfg.Shards)...)
	orDefault(&cfg.MinIdle, defaultMinIdle)
	orDefault(&cfg.ClaimInterval, max(cfg.MinIdle/4, time.Millisecond))
	orDefault(&cfg.NackDelay, defaultNackDelay)
	orDefault(&cfg.MaxNackDelay, max(defaultMaxNackDelay, cfg.NackDelay))
	orDefault(&cfg.CloseTimeout, defaultCloseTimeout)
	for _, d := range []struct {
		name         string
		value, least time.Duration
	}{
		{"MinIdle", cfg.MinIdle, minMinIdle},
		{"ClaimInterval", cfg.ClaimInterval, time.Millisecond},
		{"NackDelay", cfg.NackDelay, time.Millisecond},
		{"MaxNackDelay", cfg.MaxNackDelay, cfg.NackDelay},
		{"CloseTimeout", cfg.CloseTimeout, time.Millisecond},
	} {
		if d.value < d.least {
			faults = append(faults, fmt.Errorf("SubscriberConfig.%s is %s: give at least %s, or 0 for the default", d.name, d.value, d.least))
		}
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("redisstream.NewSubscriber: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	s := &Subscriber{subs: make(map[member]context.CancelFunc)}
	if cfg.Consumer == "" {
		s.ownName, cfg.Consumer = true, freshName()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s.cfg = cfg
	return s, nil
}

func orDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

func freshName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown-host"
	}
	var unique [6]byte
	rand.Read(unique[:])
	return host + "-" + strconv.Itoa(os.Getpid()) + "-" + hex.EncodeToString(unique[:])
}

// Subscribe joins the group on the stream named topic, creating both if need
// be, and hands over its entries, up to MaxInFlight at a time: the next one of a
// key after the last was acked. A message that is nacked comes again after a
// pause, in which its key waits. Every message has a context of its own, with the values of ctx, cancelled when the message
// is settled, when another consumer has claimed it (ErrLost), or when closing
// has taken too long. Metadata says the delivery count, the stream and the
// entry id; an entry that cannot be read comes with HeaderUndecodable.
//
// The end of ctx stops this subscription as Close would. The channel is closed
// when the last message is settled. Errors: ErrClosed, or what Redis or the
// network answered; once Subscribe has returned, it goes on through any trouble.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if topic == "" {
		return nil, errors.New("subscribe: the topic is empty; name the stream")
	}
	reading, stop := context.WithCancel(ctx)
	sub, out, err := s.join(ctx, topic, stop)
	if err != nil {
		stop()
		return nil, fmt.Errorf("subscribe to stream %q: %w", topic, err)
	}
	if err := sub.start(reading); err != nil {
		if reading.Err() != nil && ctx.Err() == nil {
			err = ErrClosed // meanwhile
		}
		s.leave(sub)
		return nil, fmt.Errorf("subscribe to stream %q in group %q: %w", topic, s.cfg.Group, err)
	}
	base := context.WithoutCancel(ctx)
	go func() {
		defer s.leave(sub)
		sub.run(base, reading)
	}()
	return out, nil
}

// join gives a subscription the lowest consumer name that no other one of this
// Subscriber has on that stream, so that they don't take each other's entries
// for their own from before a restart.
func (s *Subscriber) join(ctx context.Context, topic string, stop context.CancelFunc) (member, <-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	if s.cfg.Shards > 0 {
		sub := newSharded(s, topic)
		s.subs[sub] = stop
		s.live.Add(1)
		return sub, sub.outlet.Out(), nil
	}
	taken := make(map[string]bool)
	for other := range s.subs {
		if other, plain := other.(*subscription); plain && other.stream == topic {
			taken[other.consumer] = true
		}
	}
	name := s.cfg.Consumer
	for n := 2; taken[name]; n++ {
		name = s.cfg.Consumer + "/" + strconv.Itoa(n)
	}
	sub := newSubscription(ctx, s, topic, name, nil, nil)
	s.subs[sub] = stop
	s.live.Add(1)
	return sub, sub.room.Out(), nil
}

func (s *Subscriber) leave(sub member) {
	s.mu.Lock()
	stop := s.subs[sub]
	delete(s.subs, sub)
	s.mu.Unlock()
	stop()
	s.live.Done()
}

// Close stops reading, waits for the handlers in flight and acknowledges what
// they have done, and returns when all channels are closed. A handler that
// takes longer than CloseTimeout has its context cancelled; what it held stays
// pending and is delivered again: Close then returns ErrCloseTimeout. The
// client stays open. Close may be called more than once, and at any time.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, stop := range s.subs {
		stop()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.live.Wait()
		close(done)
	}()
	patience := time.NewTimer(s.cfg.CloseTimeout + closeGrace + 2*answerTimeout)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		return fmt.Errorf("%w for a connection that does not answer", ErrCloseTimeout)
	}
	if n := s.abandoned.Load(); n > 0 {
		return fmt.Errorf("%w for %d handlers after %s; give SubscriberConfig.CloseTimeout more, or let them heed their context",
			ErrCloseTimeout, n, s.cfg.CloseTimeout)
	}
	return nil
}
