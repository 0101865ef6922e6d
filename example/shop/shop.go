package main

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/example/shop/internal/order"
	"github.com/postbus/postbus/example/shop/internal/payment"
	"github.com/postbus/postbus/example/shop/internal/sales"
	"github.com/postbus/postbus/example/shop/internal/stock"
	"github.com/postbus/postbus/migrations"
)

// Install creates the tables: those of Postbus, and the shop's own.
func (s *Shop) Install(ctx context.Context, schema string) error {
	if err := migrations.Up(ctx, s.pool, schema); err != nil {
		return err
	}
	_, err := s.pool.Exec(ctx, order.Tables+payment.Tables+stock.Tables+sales.Tables)
	return err
}

// Run handles what arrives from the broker, until ctx ends.
func (s *Shop) Run(ctx context.Context) error {
	err := s.router.Run(ctx)
	return errors.Join(err, s.subscriber.Close(), s.publisher.Close())
}

// Fill puts pieces on a shelf.
func (s *Shop) Fill(ctx context.Context, sku string, quantity int) error {
	return bus.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return s.stock.Fill(ctx, tx, sku, quantity)
	})
}

// Place takes an order: the order, the reservation of what is ordered and the
// event are one transaction. A sold-out article undoes all three.
func (s *Shop) Place(ctx context.Context, o order.Order) (placed order.Order, err error) {
	err = bus.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		placed, err = s.orders.Place(ctx, tx, o)
		return err
	}, bus.RetryConflicts(3))
	return placed, err
}

// Pay takes the money for an order. An order that is not open undoes the payment.
func (s *Shop) Pay(ctx context.Context, o order.Order) error {
	return bus.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return s.payments.Receive(ctx, tx, o.CustomerID, o.ID, o.Cents)
	}, bus.RetryConflicts(3))
}

// Cancel takes an order back.
func (s *Shop) Cancel(ctx context.Context, o order.Order) error {
	return bus.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return s.orders.Cancel(ctx, tx, o.CustomerID, o.ID)
	}, bus.RetryConflicts(3))
}

// ticker shows on a wall what is being sold. It starts at zero with the process
// and may miss a sale when that dies: nothing that matters depends on it.
type ticker struct {
	orders, cents atomic.Int64
}

func (t *ticker) sold(cents int64) {
	t.orders.Add(1)
	t.cents.Add(cents)
}
