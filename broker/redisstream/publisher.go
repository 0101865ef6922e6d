package redisstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/outbox"
)

var (
	_ message.Publisher     = (*Publisher)(nil)
	_ outbox.BatchPublisher = (*Publisher)(nil)
)

// Publisher adds messages to Redis streams, one stream per topic: as a
// Watermill publisher, or in batches under a relay. Safe for use by several
// goroutines.
type Publisher struct {
	client  redis.UniversalClient
	timeout time.Duration
	limits  limits
	wait    replicas
	shards  int
	names   sync.Map // of the shards' streams, by topic
	batches sync.Pool

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup // those in flight, and what go-redis still holds of abandoned ones
}

// PublisherConfig: only Client is required.
type PublisherConfig struct {
	// Client is a go-redis v9 client; it stays the caller's to close. Its retries
	// may be on: they are kept away from our calls. Its ContextTimeoutEnabled may
	// be off: our deadline holds all the same, but then a connection that has
	// stopped answering stays occupied until the client's ReadTimeout.
	Client redis.UniversalClient

	// Timeout bounds each Publish and PublishBatch call, together with its
	// context. Defaults to 10 s. What has been sent by then and not answered is
	// outbox.Unknown.
	Timeout time.Duration

	// MaxMessageBytes is the largest message accepted: payload plus names and
	// values of its headers. Defaults to 1 MiB, at most 64 MiB.
	MaxMessageBytes int

	// Shards divides every topic into so many streams by partition key, 256 at most
	// (ShardStream and ShardOf say how), so that several consumers can share it and
	// keep each key in order: see SubscriberConfig.Shards, which must be the same.
	// Another number moves keys to other streams: let the consumers finish first. Publish
	// then keeps the order of each key, and stops at the first failure of each
	// shard. Defaults to 0: one stream of the topic's name.
	Shards int

	// WaitReplicas is how many replicas must have confirmed what was added (WAIT)
	// before a message is outbox.Done, in WaitTimeout, which defaults to 1 s and ends
	// with the call. With fewer it is outbox.Unknown with a *ReplicasError: it is in the
	// stream, and sent again. That makes a loss at a fail-over less likely, and does
	// not rule it out. Defaults to 0: none. Not with a *redis.ClusterClient.
	WaitReplicas int
	WaitTimeout  time.Duration
}

const (
	defaultTimeout         = 10 * time.Second
	defaultMaxMessageBytes = 1 << 20
	maxMaxMessageBytes     = 64 << 20 // Redis' proto-max-bulk-len is 512 MiB, its patience with one script is shorter

	// One script call: a few milliseconds in which the server does nothing else.
	chunkMessages = 1000
	chunkBytes    = 4 << 20
)

// NewPublisher checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	faults := clientFaults("PublisherConfig", cfg.Client)
	if cfg.Timeout < 0 {
		faults = append(faults, fmt.Errorf("PublisherConfig.Timeout is %s: give a positive duration, or 0 for %s", cfg.Timeout, defaultTimeout))
	}
	if cfg.MaxMessageBytes < 0 || cfg.MaxMessageBytes > maxMaxMessageBytes {
		faults = append(faults, fmt.Errorf("PublisherConfig.MaxMessageBytes is %d: give a number from 1 to %d, or 0 for %d",
			cfg.MaxMessageBytes, maxMaxMessageBytes, defaultMaxMessageBytes))
	}
	faults = append(faults, shardFaults("PublisherConfig", cfg.Shards)...)
	wait := replicas{cfg.WaitReplicas, cfg.WaitTimeout}
	faults = append(faults, wait.faults(cfg.Client)...)
	if len(faults) > 0 {
		return nil, fmt.Errorf("redisstream.NewPublisher: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	p := &Publisher{client: cfg.Client, timeout: cfg.Timeout, wait: wait, shards: cfg.Shards, limits: limits{
		messageBytes: cfg.MaxMessageBytes, chunkMessages: chunkMessages, chunkBytes: chunkBytes}}
	if p.timeout == 0 {
		p.timeout = defaultTimeout
	}
	if p.limits.messageBytes == 0 {
		p.limits.messageBytes = defaultMaxMessageBytes
	}
	return p, nil
}

// Publish adds msgs to the stream named topic, in order, and stops at the first
// that is not added. It returns nil when all of them are in the stream, else a
// *PublishError that says what became of each; ErrClosed after Close. Its
// context is that of the first message.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	ctx := context.Background()
	if msgs[0] != nil {
		ctx = msgs[0].Context()
	}
	src := watermillMessages{topic, msgs}
	results := make([]outbox.Result, len(msgs))
	if err := p.publish(ctx, src, results); err != nil {
		return fmt.Errorf("publish %d messages to stream %q: %w", len(msgs), topic, err)
	}
	for _, r := range results {
		if r.Status != outbox.Done {
			return publishError(src, results)
		}
	}
	return nil
}

func publishError(src watermillMessages, results []outbox.Result) *PublishError {
	e := &PublishError{Topic: src.to, Outcomes: make([]Outcome, len(results))}
	for i, r := range results {
		e.Outcomes[i] = Outcome{MessageID: src.id(i), Status: r.Status, Err: r.Err}
	}
	return e
}

// PublishBatch implements outbox.BatchPublisher: see there. Messages of several
// topics go out in one round trip (in a Redis Cluster, one per node).
func (p *Publisher) PublishBatch(ctx context.Context, msgs []*outbox.Message, results []outbox.Result) {
	if err := p.publish(ctx, relayMessages(msgs), results); err != nil {
		for i := range results {
			results[i] = outbox.Result{Status: outbox.NotAttempted, Err: err}
		}
	}
}

// BatchContract implements outbox.BatchPublisher. A key stops at its first
// failure as long as all its messages are of one topic, as they are with
// outbox.DefaultTopic. More messages than MaxBatch in one call are accepted and
// sent in several round trips.
func (p *Publisher) BatchContract() outbox.BatchContract {
	return outbox.BatchContract{StopsKeyAtFirstFailure: true, MaxBatch: p.limits.chunkMessages, MaxBatchBytes: p.limits.chunkBytes}
}

func (p *Publisher) publish(ctx context.Context, src source, results []outbox.Result) error {
	if !p.enter() {
		return ErrClosed
	}
	defer p.calls.Done()
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()

	if p.shards > 0 {
		src = p.sharded(src)
	}
	b, _ := p.batches.Get().(*batch)
	if b == nil {
		b = new(batch)
	}
	b.src, b.results, b.limits, b.replicas = src, results, p.limits, p.wait.n
	b.sortOut()
	for ctx.Err() == nil && b.nextRound(ctx) {
		if !p.round(ctx, b) { // go-redis still holds the batch's buffers, but nothing of the caller's
			b.src, b.results = nil, nil
			return nil
		}
	}
	if err := ctx.Err(); err != nil {
		b.leaveOut(err)
	}
	if b.reset(); cap(b.buf) <= 2*chunkBytes { // a rare giant is not kept
		p.batches.Put(b)
	}
	return nil
}

func (p *Publisher) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.calls.Add(1)
	return true
}

// round sends the batch's frames and waits for the answers, but not beyond ctx:
// go-redis looks at a deadline only if its ContextTimeoutEnabled is on, and at
// a cancellation never while it waits for an answer. It returns false if it
// left the call behind; that ends at the client's own timeouts.
func (p *Publisher) round(ctx context.Context, b *batch) bool {
	frames, done := b.frames, make(chan struct{})
	p.calls.Add(1)
	go func() {
		defer p.calls.Done()
		defer close(done)
		callAll(ctx, p.client, frames, p.wait)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		select {
		case <-done: // both: the answers are worth more
		default:
			for _, f := range frames {
				b.unanswered(f, f.giveUp(), ctx.Err())
			}
			return false
		}
	}
	for _, f := range frames {
		b.settle(f)
	}
	return true
}

// Close waits for the calls in flight, which their deadlines bound, and refuses
// new ones. The client stays open: it is the caller's. Close may be called
// more than once, and at any time.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()

	done := make(chan struct{})
	go func() {
		p.calls.Wait()
		close(done)
	}()
	patience := time.NewTimer(2 * p.timeout)
	defer patience.Stop()
	select {
	case <-done:
		return nil
	case <-patience.C:
		return fmt.Errorf("%w for calls that the client has not ended; set its ReadTimeout below PublisherConfig.Timeout", ErrCloseTimeout)
	}
}
