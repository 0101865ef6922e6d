package handlers

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
)

// poisonUndecodable sends a message that is no event for anybody to the poison
// queue, once for the whole router. It is not recorded in the inbox: it has no
// event id to be trusted, and an id taken from the message might hide another
// one. A crash before the ack leaves a second copy.
func (r *Router) poisonUndecodable(topic string, stopping <-chan struct{}, msg *message.Message, why error) error {
	d := &delivery{
		Delivery: Delivery{Topic: topic, Handler: UndecodableHandler, Redelivered: redelivered(msg.Metadata)},
		stopping: stopping,
	}
	own := &message.Message{UUID: msg.UUID, Metadata: msg.Metadata, Payload: msg.Payload}
	own.SetContext(context.WithValue(withDelivery(msg.Context(), d), whyKey{}, why))
	err := guard(r.garbage, own)
	result := HandlerResult{
		Handler: UndecodableHandler, Topic: topic, Outcome: OutcomePoisoned, Err: d.poisoned, Redelivered: d.Redelivered,
	}
	switch {
	case errors.Is(err, ErrInterrupted):
		result.Outcome, result.Err = OutcomeInterrupted, err
	case err != nil:
		result.Outcome, result.Err = OutcomePostponed, err
	default:
		r.counters.undecodable.Add(1)
	}
	r.report(result)
	return err
}

type whyKey struct{}

// refuseUndecodable is the handler of what nobody can read.
func refuseUndecodable(msg *message.Message) ([]*message.Message, error) {
	why, _ := msg.Context().Value(whyKey{}).(error)
	return nil, Permanent(fmt.Errorf("the message is no event that can be read: %w", why))
}
