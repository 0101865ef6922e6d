package handlers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/internal/failpoint"
	"github.com/postbus/postbus/internal/reason"
)

// PoisonConfig says where messages go that a handler gives up.
type PoisonConfig struct {
	// Publisher is required. It is not closed.
	Publisher message.Publisher
	// Topic names the poison queue of a topic. Defaults to DefaultPoisonTopic.
	Topic func(topic string) string
	// Timeout is the deadline in the context of the message that is published, for
	// publishers that heed it. Defaults to 10 s.
	Timeout time.Duration
}

// MaxReasonBytes bounds HeaderPoisonReason, in bytes of UTF-8. A poison queue refuses
// messages whose headers grow, and then nothing gets out of the consumer any more.
const MaxReasonBytes = reason.MaxBytes

// DefaultPoisonTopic is topic with ".poison" behind it.
func DefaultPoisonTopic(topic string) string { return topic + ".poison" }

func (c *PoisonConfig) setDefaults() {
	if c.Topic == nil {
		c.Topic = DefaultPoisonTopic
	}
	setDefault(&c.Timeout, 10*time.Second)
}

func (c PoisonConfig) faults(path string) (faults []error) {
	if c.Publisher == nil {
		faults = append(faults, fmt.Errorf("%s.Publisher is nil: set the message.Publisher of the poison queue; without one a failing event would be lost or tried for ever", path))
	}
	if c.Timeout < 0 {
		faults = append(faults, fmt.Errorf("%s.Timeout is %s: use a positive duration, or 0 for the default of 10 s", path, c.Timeout))
	}
	return faults
}

// Poison publishes a message that its handler gave up to the poison queue, and
// returns nil: whole, with its headers, and with the HeaderPoison... of this
// poisoning. What Retry gave up is poisoned, and without a Retry inside every
// error; never what is postponed, and nothing once the message's context has ended.
//
// It looks into the inbox first: an event that was settled elsewhere meanwhile
// is not poisoned, and while the database is away nothing is. Then it publishes,
// then it records, in this order: a crash in between repeats the poisoning, and
// HeaderPoisonEventID with HeaderPoisonHandler tells copies apart from others.
// The other order would lose the event. If one of the steps fails, the message is
// postponed, and poisoned without another attempt when it comes again.
//
// inbox may be nil: then poisonings are not recorded. It belongs outside of
// Retry, Dedup and InTx.
func Poison(inbox *Inbox, cfg PoisonConfig) (message.HandlerMiddleware, error) {
	cfg.setDefaults()
	if faults := cfg.faults("PoisonConfig"); len(faults) > 0 {
		return nil, fmt.Errorf("handlers.Poison: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		p := &poisoner{inbox: inbox, cfg: cfg, next: next, owed: newMemory[string, *GaveUpError](1000)}
		return p.handle
	}, nil
}

type poisoner struct {
	inbox *Inbox
	cfg   PoisonConfig
	next  message.HandlerFunc
	owed  *memory[string, *GaveUpError] // given up, and not in the poison queue yet; by delivery.remembered
}

func (p *poisoner) handle(msg *message.Message) ([]*message.Message, error) {
	d, done := ensureDelivery(msg)
	defer done()
	gaveUp, owed := p.owed.take(d.remembered(msg))
	if !owed {
		out, err := p.next(msg)
		if err == nil {
			return out, nil
		}
		if errors.Is(err, ErrPostponed) {
			return nil, err
		}
		if msg.Context().Err() != nil {
			return nil, interrupted(d, err)
		}
		if !errors.As(err, &gaveUp) { // there is no Retry inside
			gaveUp = &GaveUpError{max(d.Attempt, 1), err}
		}
	}
	if err := p.settle(msg, d, gaveUp); err != nil {
		p.owed.put(d.remembered(msg), gaveUp)
		return nil, err
	}
	return nil, nil
}

// settle has a time of its own: what ended the handler must not end this.
func (p *poisoner) settle(msg *message.Message, d *delivery, gaveUp *GaveUpError) error {
	ctx := context.WithoutCancel(msg.Context())
	k, unknown := d.key()
	recorded := p.inbox != nil && unknown == nil
	if recorded {
		state, err := p.inbox.state(ctx, k)
		if err != nil {
			return postponed("look up %s in the inbox before poisoning it: %w", d, err)
		}
		if settled(state, d) {
			d.duplicate = true
			return nil
		}
	}
	failpoint.Hit(fpBeforePoison)
	if err := p.publish(ctx, msg, &d.Delivery, gaveUp); err != nil {
		return postponed("publish %s to the poison queue: %w", d, err)
	}
	failpoint.Hit(fpAfterPoison)
	if recorded {
		if err := p.inbox.poisoned(ctx, k); err != nil {
			return postponed("record %s in the inbox as poisoned, which it is: %w", d, err)
		}
	}
	d.poisoned, d.Attempt = gaveUp.Err, gaveUp.Attempts
	return nil
}

func (p *poisoner) publish(ctx context.Context, msg *message.Message, d *Delivery, gaveUp *GaveUpError) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	poison := message.NewMessageWithContext(ctx, msg.UUID, msg.Payload)
	poison.Metadata = copyHeaders(msg.Metadata)
	poison.Metadata[HeaderPoisonHandler] = d.Handler
	poison.Metadata[HeaderPoisonReason] = reason.Of(gaveUp.Err)
	poison.Metadata[HeaderPoisonAttempts] = strconv.Itoa(gaveUp.Attempts)
	poison.Metadata[HeaderPoisonTopic] = d.Topic
	poison.Metadata[HeaderPoisonTime] = time.Now().UTC().Format(time.RFC3339Nano)
	if d.EventID != uuid.Nil {
		poison.Metadata[HeaderPoisonEventID] = d.EventID.String()
	}
	return p.cfg.Publisher.Publish(p.cfg.Topic(d.Topic), poison)
}
