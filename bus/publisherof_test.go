package bus

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// domainEvent and domainPublisher are what a domain declares for itself.
type (
	domainEvent interface {
		EventType() string
		SchemaVersion() int
		AggregateID() string
	}
	domainPublisher interface {
		Publish(ctx context.Context, tx pgx.Tx, evs ...domainEvent) error
	}
)

func TestPublisherOfADomain(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	var p domainPublisher = PublisherOf[domainEvent](w.bus)
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return p.Publish(ctx, tx, order(1), &orderPlaced{OrderID: "2"})
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { return p.Publish(ctx, tx) })
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return PublisherOf[orderPlaced](w.bus).Publish(ctx, tx, order(3))
	})
	equal(t, w.loggedKeys(), "order.placed 1", "order.placed 2", "order.placed 3")
	announced.want(t, "1", "2", "3")

	says(t, InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		_ = p.Publish(ctx, tx, (*orderPlaced)(nil)) // dropped
		return nil
	}), ErrDoomed)
	says(t, InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		return Publisher[domainEvent]{}.Publish(ctx, tx, order(4))
	}), nil, "bus is nil")
}
