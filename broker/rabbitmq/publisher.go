package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/outbox"
)

var (
	_ message.Publisher     = (*Publisher)(nil)
	_ outbox.BatchPublisher = (*Publisher)(nil)
)

// Publisher sends messages to RabbitMQ's exchanges and waits for its
// confirmations: as a Watermill publisher, or in batches under a relay. Safe for
// use by several goroutines. It has one connection of its own, made when it is
// first needed.
type Publisher struct {
	route   router
	timeout time.Duration
	limits  limits
	log     *slog.Logger
	conn    *connection
	lanes   *lanes
	warned  sync.Map // topics that had a message over warnBytes

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
}

// PublisherConfig: only Connection is required.
type PublisherConfig struct {
	// Connection says how to reach the server.
	Connection ConnectionConfig

	// Kind is the type of the exchanges published to. Defaults to Fanout.
	Kind Kind

	// Exchange is the exchange of all topics. Defaults to one for each topic,
	// named as the topic.
	Exchange string

	// RoutingKey is what messages are routed by. Defaults to ByEventType; always
	// the topic with DefaultExchange.
	RoutingKey RoutingKey

	// Topology is declared, or checked, before the first message of every
	// connection. Without one the exchanges are only checked, one by one, before
	// the first message to each.
	Topology *Topology

	// Timeout bounds each Publish and PublishBatch call, together with its
	// context. Defaults to 10 s. What has been sent by then and not confirmed is
	// outbox.Unknown.
	Timeout time.Duration

	// MaxMessageBytes is the largest message accepted: payload plus names and
	// values of its headers. Defaults to 16 MiB, what RabbitMQ 4 accepts by default
	// (max_message_size), at most 128 MiB, what RabbitMQ 3 does. A message above
	// 128 KiB, which no longer fits into one frame, is warned about once per topic:
	// RabbitMQ is at its best with small ones.
	MaxMessageBytes int

	// Logger is told what a person on call wants to know: the connection lost and
	// found, publishers blocked. Never payloads. Defaults to slog.Default().
	Logger *slog.Logger
}

const (
	defaultTimeout         = 10 * time.Second
	defaultMaxMessageBytes = 16 << 20
	maxMaxMessageBytes     = 128 << 20
	warnBytes              = 128 << 10

	maxBatch      = 1000
	maxBatchBytes = 4 << 20
)

type limits struct {
	messageBytes int
	unconfirmed  int    // messages on one channel
	backlog      uint64 // bytes that the socket has not taken yet
	channels     int
}

// NewPublisher checks the configuration, connects to nothing, and starts no
// goroutine. The error wraps ErrInvalidConfig and names every fault. Ready tells
// whether the server can be reached and has what is needed.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	at, faults := cfg.Connection.endpoint()
	route := router{kind: cfg.Kind, name: cfg.Exchange, key: cfg.RoutingKey}
	faults = append(faults, route.faults()...)
	topology, more := cfg.Topology.compile()
	faults = append(faults, more...)
	if cfg.Timeout < 0 {
		faults = append(faults, fmt.Errorf("PublisherConfig.Timeout is %s: give a positive duration, or 0 for %s", cfg.Timeout, defaultTimeout))
	}
	if cfg.MaxMessageBytes < 0 || cfg.MaxMessageBytes > maxMaxMessageBytes {
		faults = append(faults, fmt.Errorf("PublisherConfig.MaxMessageBytes is %d: give a number from 1 to %d, or 0 for %d",
			cfg.MaxMessageBytes, maxMaxMessageBytes, defaultMaxMessageBytes))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("rabbitmq.NewPublisher: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	p := &Publisher{route: route, timeout: cfg.Timeout, log: cfg.Logger,
		limits: limits{messageBytes: cfg.MaxMessageBytes, unconfirmed: 1024, backlog: 1 << 20, channels: 32}}
	if p.timeout == 0 {
		p.timeout = defaultTimeout
	}
	if p.limits.messageBytes == 0 {
		p.limits.messageBytes = defaultMaxMessageBytes
	}
	if p.log == nil {
		p.log = slog.Default()
	}
	p.conn = newConnection(at, p.log)
	p.lanes = newLanes(p.conn, p.route, topology, p.limits)
	return p, nil
}

// Publish sends msgs in order, and returns nil when RabbitMQ has confirmed all
// of them, else a *PublishError that says what became of each; ErrClosed after
// Close. A message with metadata partition_key waits for the confirmation of the
// one before it with the same, and is not sent if that failed; the others are
// sent without waiting. Its context is that of the first message.
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
		return fmt.Errorf("publish %d messages to %q: %w", len(msgs), topic, err)
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

// PublishBatch implements outbox.BatchPublisher: see there. Messages of
// different keys are sent without waiting for each other's confirmation; one
// waits for the confirmation of the message before it of its topic and key.
func (p *Publisher) PublishBatch(ctx context.Context, msgs []*outbox.Message, results []outbox.Result) {
	if err := p.publish(ctx, relayMessages(msgs), results); err != nil {
		for i := range results {
			results[i] = outbox.Result{Status: outbox.NotAttempted, Err: err}
		}
	}
}

// BatchContract implements outbox.BatchPublisher. A key stops at its first
// failure, as long as all its messages are of one topic, as they are with
// outbox.DefaultTopic: RabbitMQ may refuse one message and take the next, so no
// two of a key are on their way unconfirmed.
func (p *Publisher) BatchContract() outbox.BatchContract {
	return outbox.BatchContract{StopsKeyAtFirstFailure: true, MaxBatch: maxBatch, MaxBatchBytes: maxBatchBytes}
}

func (p *Publisher) publish(ctx context.Context, src source, results []outbox.Result) error {
	if !p.enter() {
		return ErrClosed
	}
	defer p.calls.Done()
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	c := &call{p: p, src: src, results: results}
	c.sortOut()
	if c.pending > 0 {
		c.run(ctx)
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

// Ready connects, unless that has been done, declares or checks the Topology,
// and returns nil if all is there: call it at the start of a program that would
// rather not start without. One try, bounded by ctx and Timeout. Its error wraps
// outbox.ErrUnavailable, ErrMissing or ErrMismatch.
func (p *Publisher) Ready(ctx context.Context) error {
	if !p.enter() {
		return ErrClosed
	}
	defer p.calls.Done()
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	s, err := p.conn.session(ctx)
	if err != nil {
		return err
	}
	if err := p.lanes.topo.prepare(ctx, s); err != nil {
		return err
	}
	if p.route.name != "" {
		return p.lanes.checkExchange(ctx, s, p.route.name)
	}
	return nil
}

// Close waits for the calls in flight, which their deadlines bound, refuses new
// ones, and closes the connection. It may be called more than once, and at any
// time.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.calls.Wait()
	p.conn.close(closeGrace)
	return nil
}

// closeGrace is what the server gets to answer that a connection is closed.
const closeGrace = 2 * time.Second
