package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

var _ message.Subscriber = (*Subscriber)(nil)

// Subscriber reads Kafka topics as a member of a consumer group. Safe for use
// by several goroutines.
type Subscriber struct {
	cfg       SubscriberConfig // with the defaults filled in
	abandoned atomic.Int64     // records that a handler still held when its time to close was over

	adminOnce sync.Once
	admin     *kgo.Client // for Lag
	adminErr  error

	mu     sync.Mutex
	closed bool
	subs   map[*subscription]context.CancelFunc // stops reading
	live   sync.WaitGroup
	calls  sync.WaitGroup // of Lag
}

// SubscriberConfig: Cluster and Group are required.
type SubscriberConfig struct {
	Cluster Cluster

	// Group names the consumer group: all who share the work of a topic. Every
	// group gets every record.
	Group string

	// Start is where a group begins that has no offset in a partition as yet.
	// Defaults to FromBeginning, so that nothing is missed.
	Start Start

	// Protocol of the group. Defaults to Classic, with the cooperative sticky
	// assignor.
	Protocol Protocol

	// InstanceID makes this a static member: one that comes back under its id
	// within SessionTimeout gets its partitions back without a rebalance. Give it a
	// name that no other living process has. The member of a topic is InstanceID + "." +
	// topic, of a second Subscribe to it with ".2" behind, and so on. Empty means none.
	InstanceID string

	// MaxInFlight bounds the messages with handlers at once, of each subscription:
	// one per key at a time, and those of a key in order. Defaults to 64. With 1, the
	// records of a partition come in its order.
	MaxInFlight int

	// MaxBuffered bounds the records that a subscription has read and not settled.
	// A partition that fills that room and does not move on is read no further, and
	// does not count for the others any more. Defaults to 4,096, at least MaxInFlight.
	MaxBuffered int

	// MaxBufferedBytes bounds their memory in the same way, and by four times as
	// much whatever happens; one poll may bring more. Defaults to 64 MiB.
	MaxBufferedBytes int

	// NackDelay is the pause before a record that was nacked is handed over again,
	// before any other of its key; it doubles with every further nack up to
	// MaxNackDelay. Default to 100 ms and 30 s.
	NackDelay    time.Duration
	MaxNackDelay time.Duration

	// SessionTimeout is how long this member may be silent before the others take
	// over its partitions. Defaults to 45 s. The broker sets it for the NextGen protocol.
	SessionTimeout time.Duration

	// RebalanceTimeout is what a member has to give up a partition that it is asked
	// for. For half of it the handlers of that partition may finish, then their contexts are
	// cancelled. Defaults to 60 s.
	RebalanceTimeout time.Duration

	// CloseTimeout is how long Close, or the end of Subscribe's context, waits for
	// the handlers in flight before it cancels the messages' contexts. Defaults to 30 s.
	CloseTimeout time.Duration

	// Logger is told what a person on call wants to know: once when reading breaks
	// and once when it resumes. Never payloads. Defaults to slog.Default().
	Logger *slog.Logger
}

// Start is where a new consumer group begins to read.
type Start int

const (
	// FromBeginning: with the first record of each partition.
	FromBeginning Start = iota
	// FromNow: with what is added after the first Subscribe. Everything before is
	// never handled.
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

// Protocol is how the members of a group share the partitions.
type Protocol int

const (
	// Classic: the members agree among themselves.
	Classic Protocol = iota
	// NextGen: the broker decides (KIP-848), which needs Kafka 4.0. A group that
	// has members of the classic kind goes over to it member by member. franz-go
	// calls its part of it beta.
	NextGen
)

func (p Protocol) String() string {
	switch p {
	case Classic:
		return "classic"
	case NextGen:
		return "next generation"
	}
	return "Protocol(" + strconv.Itoa(int(p)) + ")"
}

const (
	defaultMaxInFlight      = 64
	defaultMaxBuffered      = 4096
	defaultMaxBufferedBytes = 64 << 20
	defaultNackDelay        = 100 * time.Millisecond
	defaultMaxNackDelay     = 30 * time.Second
	defaultSessionTimeout   = 45 * time.Second
	defaultRebalanceTimeout = 60 * time.Second
	defaultCloseTimeout     = 30 * time.Second

	// leaveTimeout bounds what closing says to a broker: the last commit, the
	// farewell to the group.
	leaveTimeout = 5 * time.Second
)

// NewSubscriber checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault; among them
// options that would lose events.
func NewSubscriber(cfg SubscriberConfig) (*Subscriber, error) {
	faults := cfg.Cluster.faults("SubscriberConfig")
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("SubscriberConfig."+format, args...))
	}
	if cfg.Group == "" {
		fault("Group is empty: name who reads, for example the service; without a group nobody remembers what was handled")
	}
	if cfg.Start != FromBeginning && cfg.Start != FromNow {
		fault("Start is %d: give FromBeginning or FromNow", cfg.Start)
	}
	if cfg.Protocol != Classic && cfg.Protocol != NextGen {
		fault("Protocol is %d: give Classic or NextGen", cfg.Protocol)
	}
	if cfg.InstanceID != "" && topicFault(cfg.InstanceID) != "" {
		fault("InstanceID is %q: take letters, digits, dots, dashes and underscores", cfg.InstanceID)
	}
	orDefault(&cfg.MaxInFlight, defaultMaxInFlight)
	orDefault(&cfg.MaxBuffered, max(defaultMaxBuffered, cfg.MaxInFlight))
	orDefault(&cfg.MaxBufferedBytes, defaultMaxBufferedBytes)
	orDefault(&cfg.NackDelay, defaultNackDelay)
	orDefault(&cfg.MaxNackDelay, max(defaultMaxNackDelay, cfg.NackDelay))
	orDefault(&cfg.SessionTimeout, defaultSessionTimeout)
	orDefault(&cfg.RebalanceTimeout, defaultRebalanceTimeout)
	orDefault(&cfg.CloseTimeout, defaultCloseTimeout)
	for _, n := range []struct {
		name         string
		value, least int
	}{
		{"MaxInFlight", cfg.MaxInFlight, 1},
		{"MaxBuffered", cfg.MaxBuffered, cfg.MaxInFlight},
		{"MaxBufferedBytes", cfg.MaxBufferedBytes, 1},
	} {
		if n.value < n.least {
			fault("%s is %d: give at least %d, or 0 for the default", n.name, n.value, n.least)
		}
	}
	for _, d := range []struct {
		name         string
		value, least time.Duration
	}{
		{"NackDelay", cfg.NackDelay, time.Millisecond},
		{"MaxNackDelay", cfg.MaxNackDelay, cfg.NackDelay},
		{"SessionTimeout", cfg.SessionTimeout, 300 * time.Millisecond},
		{"RebalanceTimeout", cfg.RebalanceTimeout, 300 * time.Millisecond},
		{"CloseTimeout", cfg.CloseTimeout, time.Millisecond},
	} {
		if d.value < d.least {
			fault("%s is %s: give at least %s, or 0 for the default", d.name, d.value, d.least)
		}
	}
	s := &Subscriber{cfg: cfg, subs: make(map[*subscription]context.CancelFunc)}
	if len(faults) == 0 {
		faults = examine(s.options(), func(client *kgo.Client) []error { return consumerFaults(client, cfg) })
	}
	if len(faults) > 0 {
		return nil, invalidConfig("NewSubscriber", faults)
	}
	if s.cfg.Logger == nil {
		s.cfg.Logger = slog.Default()
	}
	return s, nil
}

func orDefault[V int | time.Duration](v *V, value V) {
	if *v == 0 {
		*v = value
	}
}

var atStart = kgo.NewOffset().AtStart()

// options are what all our consumers have in common. Who reads nothing for a
// while still hears from the broker every two seconds, and misses it after five more.
func (s *Subscriber) options(defaults ...kgo.Opt) []kgo.Opt {
	return s.cfg.Cluster.options(append([]kgo.Opt{
		kgo.ConsumeStartOffset(atStart),
		kgo.ConsumeResetOffset(atStart),
		kgo.FetchMaxWait(2 * time.Second),
		kgo.RequestTimeoutOverhead(5 * time.Second),
	}, defaults...)...)
}

// consumerFaults are options under which this package cannot keep what it promises.
func consumerFaults(client *kgo.Client, cfg SubscriberConfig) (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("SubscriberConfig.Cluster.Options: "+format, args...))
	}
	if set(client, kgo.GreedyAutoCommit) || set(client, kgo.AutoCommitMarks) {
		fault("kgo.GreedyAutoCommit and kgo.AutoCommitMarks commit on a clock what no handler has finished: remove them; " +
			"what was handled is committed here")
	}
	if client.OptValue(kgo.ConsumeResetOffset) != any(atStart) {
		fault("kgo.ConsumeResetOffset skips records when an offset is out of range: remove it")
	}
	if client.OptValue(kgo.ConsumeStartOffset) != any(atStart) {
		fault("kgo.ConsumeStartOffset skips records of partitions that have no offset yet, new ones too: remove it and choose SubscriberConfig.Start")
	}
	if group, _ := client.OptValue(kgo.ConsumerGroup).(string); group != "" {
		fault("kgo.ConsumerGroup: remove it and set SubscriberConfig.Group")
	}
	if group, _ := client.OptValue(kgo.ShareGroup).(string); group != "" {
		fault("kgo.ShareGroup gives the records of one key to several members at a time, so that they have no order: remove it")
	}
	if id := client.OptValues(kgo.InstanceID); len(id) > 1 && id[1] == true {
		fault("kgo.InstanceID: remove it and set SubscriberConfig.InstanceID")
	}
	for name, option := range map[string]any{"OnPartitionsAssigned": kgo.OnPartitionsAssigned, "OnPartitionsRevoked": kgo.OnPartitionsRevoked,
		"OnPartitionsLost": kgo.OnPartitionsLost} {
		if f := reflect.ValueOf(client.OptValue(option)); f.IsValid() && f.Kind() == reflect.Func && !f.IsNil() {
			fault("kgo.%s: it is needed here, to finish and commit what was handled: remove it", name)
		}
	}
	if set(client, kgo.ConsumeRegex) {
		fault("kgo.ConsumeRegex: a topic is what Subscribe is given: remove it")
	}
	return faults
}

// Subscribe joins the group and hands over the records of topic: up to
// MaxInFlight at once, one per key at a time and in order. A message that is
// nacked comes again after a pause, before any other of its key; those of other
// keys go on. Every message has a context of its own, with the values of ctx,
// cancelled when the message is settled, and with the cause ErrRevoked when
// another consumer has its partition. Metadata says the topic, partition, offset
// and time of the record.
//
// The end of ctx stops this subscription as Close would. The channel is closed
// when the last message is settled. Errors: ErrClosed; a topic that does not
// exist or that Kafka allows not; no broker that answers, or lets us in
// (outbox.ErrUnavailable). Once Subscribe has returned, it goes on through any
// trouble. Each Subscribe is a member of the group.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if fault := topicFault(topic); fault != "" {
		return nil, fmt.Errorf("subscribe to topic %q: %s", topic, fault)
	}
	reading, stop := context.WithCancel(ctx)
	sub := newSubscription(s, topic, context.WithoutCancel(ctx))
	if err := s.join(sub, stop); err != nil {
		stop()
		return nil, fmt.Errorf("subscribe to topic %q: %w", topic, err)
	}
	if err := sub.start(reading); err != nil {
		if reading.Err() != nil && ctx.Err() == nil {
			err = ErrClosed // meanwhile
		}
		sub.room.Close()
		s.leave(sub)
		return nil, fmt.Errorf("subscribe to topic %q in group %q: %w", topic, s.cfg.Group, err)
	}
	go func() {
		defer s.leave(sub)
		sub.run(reading)
	}()
	return sub.room.Out(), nil
}

func (s *Subscriber) join(sub *subscription, stop context.CancelFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.cfg.InstanceID != "" {
		if err := s.nameMember(sub); err != nil {
			return err
		}
	}
	s.subs[sub] = stop
	s.live.Add(1)
	return nil
}

// nameMember gives a static member the first name that no other one of ours has.
func (s *Subscriber) nameMember(sub *subscription) error {
	taken := make(map[string]bool)
	for other := range s.subs {
		taken[other.member] = true
	}
	base := s.cfg.InstanceID + "." + sub.topic
	sub.member = base
	for n := 2; taken[sub.member]; n++ {
		sub.member = base + "." + strconv.Itoa(n)
	}
	if topicFault(sub.member) != "" {
		return fmt.Errorf("the member's name %q is too long for Kafka: give a shorter SubscriberConfig.InstanceID", sub.member)
	}
	return nil
}

func (s *Subscriber) leave(sub *subscription) {
	s.mu.Lock()
	stop := s.subs[sub]
	delete(s.subs, sub)
	s.mu.Unlock()
	stop()
	s.live.Done()
}

// Close stops reading, waits for the handlers in flight, commits what they have
// done and leaves the group; it returns when all channels are closed. A handler
// that takes longer than CloseTimeout has its context cancelled; what it held is
// not committed and is delivered again: Close then returns ErrCloseTimeout. It
// may be called more than once, and at any time.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, stop := range s.subs {
		stop()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		defer close(done)
		s.live.Wait()
		s.calls.Wait()
		s.adminOnce.Do(func() { s.adminErr = ErrClosed })
		if s.admin != nil {
			s.admin.Close()
		}
	}()
	patience := time.NewTimer(s.cfg.CloseTimeout + closeGrace + s.cfg.RebalanceTimeout + 4*leaveTimeout)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		return fmt.Errorf("%w for a broker that does not answer", ErrCloseTimeout)
	}
	if n := s.abandoned.Load(); n > 0 {
		return fmt.Errorf("%w for %d handlers after %s; give SubscriberConfig.CloseTimeout more, or let them heed their context",
			ErrCloseTimeout, n, s.cfg.CloseTimeout)
	}
	return nil
}

var errNoPartitions = errors.New("the topic has no partitions as yet; try again")
