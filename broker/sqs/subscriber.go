package sqs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
)

var _ message.Subscriber = (*Subscriber)(nil)

// Subscriber receives from SQS queues. All who subscribe to one queue share its
// messages. Safe for use by several goroutines.
type Subscriber struct {
	cfg       SubscriberConfig // with the defaults filled in
	abandoned atomic.Int64     // messages that a handler still held when its time to close was over

	mu     sync.Mutex
	closed bool
	subs   map[*subscription]struct{}
	live   sync.WaitGroup
}

// SubscriberConfig: only Client is required.
type SubscriberConfig struct {
	// Client is a client of aws-sdk-go-v2/service/sqs. Its retries may be on: they are
	// kept away from our calls. Its HTTP client must not have a timeout shorter than
	// WaitTime.
	Client *awssqs.Client

	// QueueName is the queue of a topic. Defaults to the function QueueName: the topic
	// itself. FIFOQueueName puts ".fifo" behind it.
	QueueName func(topic string) string

	// MaxInFlight is how many messages are with the handlers at once, one per key at a
	// time. The key is the MessageGroupId in a FIFO queue, else the header
	// events.HeaderPartitionKey. Defaults to 64. As many again may be waiting in this
	// process; from a FIFO queue ten times as many, since SQS gives out up to ten of
	// a group at once, and none of it to others meanwhile.
	MaxInFlight int

	// WaitTime is how long a request to receive waits for messages, 1 s to 20 s in whole seconds.
	// Defaults to 20 s, which costs least. Closing waits for such requests to
	// come back: one that is broken off may take messages with it, which then are
	// hidden for Visibility.
	WaitTime time.Duration

	// Visibility is for how long a message that was received is hidden from others. It
	// is renewed at a third of it, as long as the message is here, so that
	// handlers may take longer. If this process dies, its messages come back when it
	// is over. Defaults to 300 s; 2 s to 11 h, in whole seconds. It overrules the queue's.
	Visibility time.Duration

	// HandlerLimit is how long a handler may take. Then its context is cancelled
	// (ErrHandlerLimit), its message is renewed no more, and comes again. Defaults to
	// 30 min; with Visibility it must stay within 12 h, where SQS ends all renewal.
	HandlerLimit time.Duration

	// WithoutRenewal: nothing is renewed, for who has no right to
	// sqs:ChangeMessageVisibility; a message that takes longer than Visibility from
	// being received, waiting for its turn included, is handled twice. Visibility
	// must then exceed HandlerLimit.
	WithoutRenewal bool

	// NackDelay is for how long a message that was nacked is hidden before it comes
	// again: twice as long each time it has been received, up to MaxNackDelay.
	// Defaults to 1 s and 5 min; SQS counts whole seconds. AtOnce means no delay.
	NackDelay    time.Duration
	MaxNackDelay time.Duration

	// CloseTimeout is how long Close, or the end of Subscribe's context, waits for
	// the handlers in flight before it cancels their contexts. Defaults to 30 s.
	CloseTimeout time.Duration

	// Logger is told what a person on call wants to know: once when receiving breaks
	// and once when it works again, messages that were lost to others, queues
	// that are not fit. Never payloads. Defaults to slog.Default().
	Logger *slog.Logger
}

// AtOnce as SubscriberConfig.NackDelay: a nacked message comes again without a delay.
const AtOnce time.Duration = -1

const (
	defaultMaxInFlight  = 64
	maxMaxInFlight      = 10_000
	defaultWaitTime     = 20 * time.Second
	maxWaitTime         = 20 * time.Second
	defaultVisibility   = 300 * time.Second
	defaultHandlerLimit = 30 * time.Minute
	defaultNackDelay    = time.Second
	defaultMaxNackDelay = 5 * time.Minute
	defaultCloseTimeout = 30 * time.Second

	// maxHidden is how long SQS lets a message be hidden, from its reception on; source:
	// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html.
	maxHidden = 12 * time.Hour
	// minVisibility: below it a slow network would look like a dead consumer.
	minVisibility = 2 * time.Second

	// answerTimeout bounds every call beyond what it waits for on purpose.
	answerTimeout = 5 * time.Second
	// closeGrace is what a handler gets after its context was cancelled.
	closeGrace = 2 * time.Second
)

// NewSubscriber checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault.
func NewSubscriber(cfg SubscriberConfig) (*Subscriber, error) {
	orDefault(&cfg.MaxInFlight, defaultMaxInFlight)
	orDefault(&cfg.WaitTime, defaultWaitTime)
	orDefault(&cfg.Visibility, defaultVisibility)
	if cfg.WithoutRenewal {
		orDefault(&cfg.HandlerLimit, cfg.Visibility/2)
	}
	orDefault(&cfg.HandlerLimit, defaultHandlerLimit)
	orDefault(&cfg.NackDelay, defaultNackDelay)
	orDefault(&cfg.MaxNackDelay, max(defaultMaxNackDelay, cfg.NackDelay))
	orDefault(&cfg.CloseTimeout, defaultCloseTimeout)
	if faults := cfg.faults(); len(faults) > 0 {
		return nil, fmt.Errorf("sqs.NewSubscriber: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	if cfg.QueueName == nil {
		cfg.QueueName = QueueName
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Subscriber{cfg: cfg, subs: make(map[*subscription]struct{})}, nil
}

func (cfg *SubscriberConfig) faults() (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("SubscriberConfig."+format, args...))
	}
	if cfg.Client == nil {
		fault("Client is nil: give a client of aws-sdk-go-v2/service/sqs, such as sqs.NewFromConfig(...)")
	} else {
		o := cfg.Client.Options()
		faults = append(faults, clientFaults("SubscriberConfig", o.Region, o.BaseEndpoint)...)
		if limit := httpTimeout(o.HTTPClient); limit > 0 && limit <= cfg.WaitTime {
			fault("Client has an HTTP client with a timeout of %s, which would break off every request that waits for WaitTime, %s, and the messages it "+
				"gets would be hidden for Visibility: raise or remove that timeout, our requests have deadlines of their own", limit, cfg.WaitTime)
		}
	}
	if cfg.MaxInFlight < 1 || cfg.MaxInFlight > maxMaxInFlight {
		fault("MaxInFlight is %d: give a number from 1 to %d, or 0 for %d", cfg.MaxInFlight, maxMaxInFlight, defaultMaxInFlight)
	}
	if cfg.WaitTime < time.Second || cfg.WaitTime > maxWaitTime || cfg.WaitTime%time.Second != 0 {
		fault("WaitTime is %s: give whole seconds from 1 s to %s, or 0 for %s", cfg.WaitTime, maxWaitTime, defaultWaitTime)
	}
	if cfg.Visibility < minVisibility || cfg.Visibility%time.Second != 0 {
		fault("Visibility is %s: give whole seconds, at least %s, or 0 for %s", cfg.Visibility, minVisibility, defaultVisibility)
	}
	if cfg.HandlerLimit < time.Millisecond {
		fault("HandlerLimit is %s: give a positive duration, or 0 for %s", cfg.HandlerLimit, defaultHandlerLimit)
	}
	if cfg.HandlerLimit+cfg.Visibility > maxHidden {
		fault("HandlerLimit, %s, and Visibility, %s, exceed the %s for which SQS lets a message be hidden; then another consumer would get it "+
			"while it is handled: lower them", cfg.HandlerLimit, cfg.Visibility, maxHidden)
	}
	if cfg.WithoutRenewal && cfg.Visibility <= cfg.HandlerLimit {
		fault("Visibility, %s, does not exceed HandlerLimit, %s, and WithoutRenewal is set: a slow handler's message would be handled a second time "+
			"meanwhile; raise Visibility, lower HandlerLimit, or leave WithoutRenewal out", cfg.Visibility, cfg.HandlerLimit)
	}
	if cfg.NackDelay < 0 && cfg.NackDelay != AtOnce {
		fault("NackDelay is %s: give a positive duration, AtOnce, or 0 for %s", cfg.NackDelay, defaultNackDelay)
	}
	if cfg.MaxNackDelay < cfg.NackDelay || cfg.MaxNackDelay > maxHidden-time.Hour {
		fault("MaxNackDelay is %s: give a duration from NackDelay, %s, to %s, or 0 for %s", cfg.MaxNackDelay, cfg.NackDelay, maxHidden-time.Hour, defaultMaxNackDelay)
	}
	if cfg.CloseTimeout < time.Millisecond {
		fault("CloseTimeout is %s: give a positive duration, or 0 for %s", cfg.CloseTimeout, defaultCloseTimeout)
	}
	return faults
}

func httpTimeout(c awssqs.HTTPClient) time.Duration {
	switch c := c.(type) {
	case *http.Client:
		return c.Timeout
	case *awshttp.BuildableClient:
		return c.GetTimeout()
	}
	return 0
}

// Subscribe receives from the queue of topic, which must exist, and hands over its
// messages: up to MaxInFlight at once, one per key at a time. A message that is
// acked is deleted; one that is nacked becomes visible again after NackDelay, and
// in a FIFO queue all of its group that is here goes back with it. Every message
// has a context of its own, with the values of ctx, cancelled when the message
// is settled, when it could not be kept hidden (ErrLost), when its handler takes
// longer than HandlerLimit, or when closing has taken too long. Metadata says
// what is known of the delivery (HeaderDeliveryCount and others); a message that
// cannot be read comes with HeaderUndecodable.
//
// The end of ctx stops this subscription as Close would. The channel is closed
// when the last message is settled. Errors: ErrClosed, ErrNoQueue, or what AWS or
// the network answered; once Subscribe has returned, it goes on through any trouble.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	queue := s.cfg.QueueName(topic)
	if fault := nameFault(queue); fault != "" {
		return nil, fmt.Errorf("subscribe to topic %q: %s", topic, fault)
	}
	sub := newSubscription(s, ctx, queue)
	if !s.join(sub) {
		return nil, fmt.Errorf("subscribe to queue %q: %w", queue, ErrClosed)
	}
	if err := sub.find(ctx); err != nil {
		s.leave(sub)
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	go func() {
		defer s.leave(sub)
		sub.run(ctx)
	}()
	return sub.room.Out(), nil
}

func (s *Subscriber) join(sub *subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.subs[sub] = struct{}{}
	s.live.Add(1)
	return true
}

func (s *Subscriber) leave(sub *subscription) {
	s.mu.Lock()
	delete(s.subs, sub)
	s.mu.Unlock()
	sub.stop()
	s.live.Done()
}

// Close stops receiving, gives back at once what no handler has got, waits for the
// handlers in flight and deletes what they have done, and returns when all
// channels are closed. It waits for the requests to receive that are under
// way: up to WaitTime. A handler that takes longer than CloseTimeout has its
// context cancelled; its message comes again: Close then returns ErrCloseTimeout.
// Nobody needs to read the channel. Close may be called more than once, and at any time.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	for sub := range s.subs {
		sub.stop()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.live.Wait()
		close(done)
	}()
	patience := time.NewTimer(max(s.cfg.CloseTimeout+closeGrace, s.cfg.WaitTime+2*answerTimeout) + 4*answerTimeout)
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
