package bus

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// Publisher is a bus as one domain sees it: its Publish takes only E, the domain's
// own type of events. It is made by [PublisherOf]; the zero value publishes
// nothing and says so. It is safe for use by several goroutines, and may be copied.
type Publisher[E events.Payload] struct{ bus *EventBus }

// PublisherOf gives a domain the one-method interface that it declares itself, so
// that the domain imports nothing of ours and can be tested with a fake:
//
//	package order // the domain
//
//	type Publisher interface {
//		Publish(ctx context.Context, tx pgx.Tx, evs ...Event) error
//	}
//
//	orders := order.New(bus.PublisherOf[order.Event](eventBus)) // the wiring
//
// E is the domain's own interface of events, or one event type. It needs the three
// methods of [events.Payload]; one without them does not compile. To give options
// with a publication ([events.With]), publish by the bus itself.
func PublisherOf[E events.Payload](b *EventBus) Publisher[E] { return Publisher[E]{bus: b} }

// Publish is [EventBus.Publish] for events of type E.
func (p Publisher[E]) Publish(ctx context.Context, tx pgx.Tx, evs ...E) error {
	return PublishAll(ctx, p.bus, tx, evs)
}
