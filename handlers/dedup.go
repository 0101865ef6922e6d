package handlers

import (
	"github.com/ThreeDotsLabs/watermill/message"

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
