package handlers

import (
	"context"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
)

// Delivery is what a handler may ask about the delivery it is called for; see
// [DeliveryFrom].
type Delivery struct {
	Topic       string
	Handler     string
	EventID     uuid.UUID
	Attempt     int  // 1 is the first; it goes on over redeliveries that this process sees
	Redelivered bool // somebody has certainly had it before; false means "not known"
	Replayed    bool // it comes from the poison queue, possibly behind younger events of its key
}

// DeliveryFrom is the delivery that a handler's ctx belongs to.
func DeliveryFrom(ctx context.Context) (Delivery, bool) {
	d := deliveryOf(ctx)
	if d == nil {
		return Delivery{}, false
	}
	return d.Delivery, true
}

// delivery is one message on its way through the chain of one handler. It is
// used by one goroutine at a time.
type delivery struct {
	Delivery
	event    events.DomainEvent
	stopping <-chan struct{} // closed when the router stops: begin nothing new
	onRetry  func(d *delivery, err error, wait time.Duration)

	duplicate bool  // it was settled before
	poisoned  error // why, once the poison queue has it
}

type deliveryKey struct{}

func deliveryOf(ctx context.Context) *delivery {
	d, _ := ctx.Value(deliveryKey{}).(*delivery)
	return d
}

func withDelivery(ctx context.Context, d *delivery) context.Context {
	return context.WithValue(ctx, deliveryKey{}, d)
}

// ensureDelivery is the delivery of msg. In a Watermill router of the user's own
// there is none: the outermost of our middlewares makes it, with Watermill's name
// of the handler and the message's UUID, which Postbus makes the event id. done
// puts the message's context back.
func ensureDelivery(msg *message.Message) (d *delivery, done func()) {
	ctx := msg.Context()
	if d := deliveryOf(ctx); d != nil {
		return d, func() {}
	}
	d = &delivery{Delivery: Delivery{
		Topic:       message.SubscribeTopicFromCtx(ctx),
		Handler:     message.HandlerNameFromCtx(ctx),
		Redelivered: redelivered(msg.Metadata),
	}}
	d.EventID, _ = uuid.Parse(msg.UUID)
	d.Replayed = d.Handler != "" && msg.Metadata[HeaderReplayFor] == d.Handler
	msg.SetContext(withDelivery(ctx, d))
	return d, func() { msg.SetContext(ctx) }
}

// key is what the inbox knows the delivery by.
func (d *delivery) key() (key, error) {
	if d.Handler == "" || d.EventID == uuid.Nil {
		return key{}, Permanent(fmt.Errorf("find the message in the inbox: handler %q, event id %s: a message UUID that is the event id and a handler name are needed", d.Handler, d.EventID))
	}
	return key{d.Handler, d.EventID}, nil
}

// remembered is what this process remembers the event by between its deliveries.
func (d *delivery) remembered(msg *message.Message) string {
	if d.EventID != uuid.Nil {
		return string(d.EventID[:])
	}
	return msg.UUID
}

func (d *delivery) String() string {
	return fmt.Sprintf("event %s in handler %q", d.EventID, d.Handler)
}

// sleep waits for wait, and returns false if ctx ended or stopping was closed first.
func sleep(ctx context.Context, stopping <-chan struct{}, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-stopping:
		return false
	case <-ctx.Done():
		return false
	}
}
