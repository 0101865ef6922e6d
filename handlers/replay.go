package handlers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/reason"
)

// ReplayConfig configures a Replayer. The zero value replays everything.
type ReplayConfig struct {
	// Filter chooses what is replayed; the rest stays in the poison queue. nil
	// chooses everything. It must not change the message.
	Filter func(Poisoned) bool
	// Limit bounds how many messages one pass replays. Defaults to 1,000.
	Limit int
	// Interval is the least time between two replayed messages, to spare the
	// consumers. Defaults to none.
	Interval time.Duration
	// Idle is how long the poison queue must have nothing to offer to count as
	// empty. Defaults to 5 s, since subscribing takes some brokers seconds.
	Idle time.Duration
	// PoisonTopic is PoisonConfig.Topic: a message whose origin does not belong to
	// the queue it is found in is not sent there. Defaults to DefaultPoisonTopic.
	PoisonTopic func(topic string) string
	// Timeout is the deadline in the context of each message that is published, for
	// publishers that heed it. Defaults to 10 s.
	Timeout time.Duration
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Poisoned is a message of the poison queue, as its headers describe it.
type Poisoned struct {
	Handler   string // which gave up
	EventID   uuid.UUID
	EventType string
	Topic     string // where it came from
	Reason    string
	Attempts  int
	At        time.Time
	Message   *message.Message // to be read only
}

// ReplayReport is what one pass has done.
type ReplayReport struct {
	Seen       int // messages taken from the queue
	Replayed   int // sent back to where they came from
	Kept       int // put back: not chosen
	Unreadable int // put back: their headers don't say where they came from, or lie. Not in Kept
	// Rest tells that the pass stopped at its Limit, with more in the queue.
	Rest bool
}

// Replayer sends poisoned messages back to the topic they came from, each for
// the one handler that gave it up. It is safe for use by several goroutines, but
// one poison queue should be replayed by one of them at a time.
type Replayer struct {
	subscriber message.Subscriber
	publisher  message.Publisher
	cfg        ReplayConfig
}

// NewReplayer checks the config, and reports all its faults at once. subscriber
// reads the poison queue, publisher writes to it and to the topics that events
// came from. Neither is closed.
func NewReplayer(subscriber message.Subscriber, publisher message.Publisher, cfg ReplayConfig) (*Replayer, error) {
	var faults []error
	if subscriber == nil {
		faults = append(faults, errors.New("subscriber is nil: pass the message.Subscriber of the poison queue"))
	}
	if publisher == nil {
		faults = append(faults, errors.New("publisher is nil: pass the message.Publisher of the broker that has the poison queue and the topics"))
	}
	if cfg.Limit < 0 {
		faults = append(faults, fmt.Errorf("ReplayConfig.Limit is %d: use a positive number, or 0 for the default of 1,000", cfg.Limit))
	}
	for name, d := range map[string]time.Duration{"Interval": cfg.Interval, "Idle": cfg.Idle, "Timeout": cfg.Timeout} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("ReplayConfig.%s is %s: use a positive duration, or 0 for the default", name, d))
		}
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("handlers.NewReplayer: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	setDefault(&cfg.Limit, 1000)
	setDefault(&cfg.Idle, 5*time.Second)
	setDefault(&cfg.Timeout, 10*time.Second)
	if cfg.PoisonTopic == nil {
		cfg.PoisonTopic = DefaultPoisonTopic
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Replayer{subscriber, publisher, cfg}, nil
}

// Replay makes one pass over a poison queue: it ends when it meets a message that
// it has put back itself or whose replay has failed again, when the queue has
// nothing more to offer, or at its Limit. On a queue that keeps no order it may
// end early; call it again.
//
// A message that is chosen is published to its origin with HeaderReplayFor, then
// acked. Its handler's poisoning is lifted by the router when it gets there, in
// one with the effects; so the Replayer needs no database, and a crash at any
// point only repeats: what was handled meanwhile is a duplicate then. All others
// are published to the queue's end, then acked.
//
// On an error the report tells what was done so far; the message at hand is still
// in the queue.
func (r *Replayer) Replay(ctx context.Context, poisonTopic string) (report ReplayReport, err error) {
	ctx, cancel := context.WithCancel(ctx)
	in, err := r.subscriber.Subscribe(ctx, poisonTopic)
	if err != nil {
		cancel()
		return report, fmt.Errorf("subscribe to poison queue %q: %w", poisonTopic, err)
	}
	defer func() {
		cancel()
		giveBack(in)
	}()
	pass := events.NewID().String()
	var last time.Time // of a replay
	for {
		idle := time.NewTimer(r.cfg.Idle)
		var msg *message.Message
		var open bool
		select {
		case msg, open = <-in:
		case <-idle.C:
			return report, nil
		case <-ctx.Done():
		}
		idle.Stop()
		if err := ctx.Err(); err != nil {
			if msg != nil {
				msg.Nack()
			}
			return report, fmt.Errorf("replay poison queue %q: %w", poisonTopic, err)
		}
		if !open {
			return report, fmt.Errorf("replay poison queue %q: %w", poisonTopic, ErrSubscriptionEnded)
		}
		if msg == nil {
			continue
		}
		if msg.Metadata[HeaderReplayPass] == pass {
			msg.Nack() // the queue's end, as it was when the pass began
			return report, nil
		}
		if report.Replayed == r.cfg.Limit {
			msg.Nack()
			report.Rest = true
			return report, nil
		}
		report.Seen++
		p, fault := r.read(msg, poisonTopic)
		replay := fault == nil && (r.cfg.Filter == nil || r.cfg.Filter(p))
		target := poisonTopic
		if replay {
			target = p.Topic
			sleep(ctx, nil, r.cfg.Interval-time.Since(last))
			last = time.Now()
		}
		if err := r.publish(ctx, target, msg, pass, p.Handler, replay); err != nil {
			msg.Nack()
			return report, fmt.Errorf("send message %s of poison queue %q to %q: %w", msg.UUID, poisonTopic, target, err)
		}
		msg.Ack()
		switch {
		case replay:
			report.Replayed++
		case fault != nil:
			report.Unreadable++
			r.cfg.Logger.Warn("a message stays in the poison queue, since nobody knows where it came from",
				"topic", poisonTopic, "message", msg.UUID, "error", reason.Of(fault))
		default:
			report.Kept++
		}
	}
}

// read finds out whose the message was.
func (r *Replayer) read(msg *message.Message, poisonTopic string) (p Poisoned, fault error) {
	h := msg.Metadata
	p = Poisoned{
		Handler: h[HeaderPoisonHandler], EventType: h[events.HeaderEventType],
		Topic: h[HeaderPoisonTopic], Reason: h[HeaderPoisonReason], Message: msg,
	}
	p.EventID, _ = uuid.Parse(h[HeaderPoisonEventID])
	p.Attempts, _ = strconv.Atoi(h[HeaderPoisonAttempts])
	p.At, _ = time.Parse(time.RFC3339Nano, h[HeaderPoisonTime])
	switch {
	case p.Handler == "" || p.Topic == "":
		return p, fmt.Errorf("the header %s or %s is missing", HeaderPoisonHandler, HeaderPoisonTopic)
	case p.Handler != UndecodableHandler && p.EventID == uuid.Nil:
		return p, fmt.Errorf("the header %s is no event id", HeaderPoisonEventID)
	case r.cfg.PoisonTopic(p.Topic) != poisonTopic:
		return p, fmt.Errorf("its origin %q has another poison queue: set ReplayConfig.PoisonTopic to what the router has", reason.Cut(p.Topic, 128))
	}
	return p, nil
}

func (r *Replayer) publish(ctx context.Context, topic string, msg *message.Message, pass, handler string, replay bool) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	next := message.NewMessageWithContext(ctx, msg.UUID, msg.Payload)
	if !replay {
		for name, value := range msg.Metadata {
			next.Metadata[name] = value
		}
		next.Metadata[HeaderReplayPass] = pass
		return r.publisher.Publish(topic, next)
	}
	next.Metadata = copyHeaders(msg.Metadata)
	next.Metadata[HeaderReplayPass] = pass
	next.Metadata[events.HeaderReplayed] = "true"
	if handler != UndecodableHandler { // that is for all handlers
		next.Metadata[HeaderReplayFor] = handler
	}
	return r.publisher.Publish(topic, next)
}
