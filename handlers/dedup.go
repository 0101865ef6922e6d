package handlers

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/internal/failpoint"
)

// Dedup runs the handler at least once for each event, and not again once that
// is recorded. An event that is being handled elsewhere is no duplicate yet: both
// run. A process that dies between the handler's return and the record runs it
// again. Use InTx where the effects are in Postgres.
//
// An inbox that cannot be reached postpones the message. It belongs inside
// Poison and outside of Retry.
func Dedup(inbox *Inbox) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			d, done := ensureDelivery(msg)
			defer done()
			k, err := d.key()
			if err != nil {
				return nil, err
			}
			state, err := inbox.state(msg.Context(), k)
			if err != nil {
				return nil, postponed("look up %s in the inbox: %w", d, err)
			}
			if settled(state, d) {
				d.duplicate = true
				return nil, nil
			}
			out, err := next(msg)
			if err != nil {
				return nil, err
			}
			failpoint.Hit(fpAfterEffects)
			if err := inbox.handled(msg.Context(), k); err != nil {
				return nil, postponed("record %s in the inbox as handled, which it is: %w", d, err)
			}
			failpoint.Hit(fpAfterCommit)
			return out, nil
		}
	}
}

// settled tells whether a delivery has nothing to do: a replay lifts a poisoning.
func settled(state string, d *delivery) bool {
	return state == stateHandled || state == statePoisoned && !d.Replayed
}

// DedupBy is Dedup for effects, and a memory of them, that are not in Postgres:
// store keeps what was handled, as redisstream.Dedup does. The handler runs at
// least once for each event, one run at a time while its claim lasts, and not
// again once its success is recorded and for as long as store remembers it.
//
// An event in progress elsewhere is postponed (ErrInProgress): the other one may
// fail. A failure, or a panic, gives the event back at once. What a process that
// died had claimed is handled when the claim has run out; so a claim must last
// longer than a delivery may take (RetryConfig.MaxElapsed), and should run out
// before the broker delivers the message again. A success that store could not
// be told of is remembered here, and recorded when the message comes again,
// without another run; a process that dies in between runs it again.
//
// A store that cannot be reached postpones the message. A message that the
// handler gave up is not remembered: its replay runs, and so does a duplicate of
// it. What the handler returns to be published is lost if the process dies
// before it is; publish inside of the handler. It belongs inside Poison and
// outside of Retry.
func DedupBy(store DedupStore) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		c := &claimer{store: store, next: next, owed: newMemory[string, owedCompletion](1000)}
		return c.handle
	}
}

type claimer struct {
	store DedupStore
	next  message.HandlerFunc
	owed  *memory[string, owedCompletion] // handled, and the store does not know; by delivery.remembered
}

type owedCompletion struct {
	token string
	out   []*message.Message
}

func (c *claimer) handle(msg *message.Message) ([]*message.Message, error) {
	d, done := ensureDelivery(msg)
	defer done()
	k, err := d.key()
	if err != nil {
		return nil, err
	}
	if owed, ok := c.owed.take(d.remembered(msg)); ok {
		d.duplicate = true
		return c.complete(msg, d, k, owed)
	}
	state, token, err := c.store.Claim(msg.Context(), k.handler, k.event)
	switch {
	case err != nil:
		return nil, postponed("claim %s: %w", d, err)
	case state == ClaimDone:
		d.duplicate = true
		return nil, nil
	case state != ClaimFresh:
		return nil, postponed("claim %s: %w", d, ErrInProgress)
	}
	succeeded := false
	defer func() { // in a defer for a panic, where there is no Recover inside
		if !succeeded {
			// Should it not work, the claim runs out by itself.
			_ = c.store.Release(context.WithoutCancel(msg.Context()), k.handler, k.event, token)
		}
	}()
	out, err := c.next(msg)
	if err != nil {
		return nil, err
	}
	succeeded = true
	failpoint.Hit(fpAfterEffects)
	return c.complete(msg, d, k, owedCompletion{token, out})
}

// complete has a time of its own: what ended the handler must not end this.
func (c *claimer) complete(msg *message.Message, d *delivery, k key, owed owedCompletion) ([]*message.Message, error) {
	if err := c.store.Complete(context.WithoutCancel(msg.Context()), k.handler, k.event, owed.token); err != nil {
		c.owed.put(d.remembered(msg), owed)
		return nil, postponed("record %s as handled, which it is: %w", d, err)
	}
	failpoint.Hit(fpAfterCommit)
	return owed.out, nil
}

// poisonedOnce stands outside of a Poison that records nothing: a message that
// comes again because of another handler is not given up a second time. A replay
// lifts that, as in the inbox. It is for messages with an event id.
func poisonedOnce() message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		poisoned := newMemory[uuid.UUID, struct{}](10_000)
		return func(msg *message.Message) ([]*message.Message, error) {
			d := deliveryOf(msg.Context())
			if _, found := poisoned.take(d.EventID); found && !d.Replayed {
				poisoned.put(d.EventID, struct{}{})
				d.duplicate = true
				return nil, nil
			}
			out, err := next(msg)
			if d.poisoned != nil {
				poisoned.put(d.EventID, struct{}{})
			}
			return out, err
		}
	}
}
