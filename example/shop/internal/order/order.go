// Package order takes, settles and cancels the orders of customers.
//
// A customer's account is the aggregate: whatever changes one of a customer's
// orders locks the account first, so that the changes of one customer have an
// order, and their events have the same one.
package order

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Tables is what this package needs in the database.
const Tables = `
CREATE TABLE accounts (
    customer_id text   PRIMARY KEY,
    version     bigint NOT NULL
);
CREATE TABLE orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id text   NOT NULL REFERENCES accounts,
    sku         text   NOT NULL,
    quantity    int    NOT NULL,
    cents       bigint NOT NULL,
    state       text   NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'paid', 'cancelled'))
);`

// ErrNotOpen refuses to settle or to cancel an order that is settled or cancelled.
var ErrNotOpen = errors.New("the order is not open")

// Publisher is all that this package knows of publishing: events become public
// with the transaction, or not at all.
type Publisher interface {
	Publish(ctx context.Context, tx pgx.Tx, evs ...Event) error
}

// Order is one order of a customer.
type Order struct {
	ID         int64
	CustomerID string
	SKU        string
	Quantity   int
	Cents      int64
}

// Orders is the order department.
type Orders struct {
	publisher Publisher
}

// New makes the department; what happens in it is told to publisher.
func New(publisher Publisher) *Orders { return &Orders{publisher: publisher} }

// Place takes an order, and gives it its ID.
func (s *Orders) Place(ctx context.Context, tx pgx.Tx, o Order) (Order, error) {
	version, err := lock(ctx, tx, o.CustomerID)
	if err != nil {
		return o, err
	}
	err = tx.QueryRow(ctx, `INSERT INTO orders (customer_id, sku, quantity, cents) VALUES ($1, $2, $3, $4) RETURNING id`,
		o.CustomerID, o.SKU, o.Quantity, o.Cents).Scan(&o.ID)
	if err != nil {
		return o, fmt.Errorf("place an order of customer %s: %w", o.CustomerID, err)
	}
	return o, s.publisher.Publish(ctx, tx, Placed{
		CustomerID: o.CustomerID, Version: version, OrderID: o.ID,
		SKU: o.SKU, Quantity: o.Quantity, Cents: o.Cents,
	})
}

// Settle marks an open order as paid.
func (s *Orders) Settle(ctx context.Context, tx pgx.Tx, customerID string, orderID int64) error {
	version, err := lock(ctx, tx, customerID)
	if err != nil {
		return err
	}
	o, err := closeOrder(ctx, tx, customerID, orderID, "paid")
	if err != nil {
		return fmt.Errorf("settle order %d: %w", orderID, err)
	}
	return s.publisher.Publish(ctx, tx, Paid{
		CustomerID: customerID, Version: version, OrderID: orderID, SKU: o.SKU, Quantity: o.Quantity,
	})
}

// Cancel takes an open order back.
func (s *Orders) Cancel(ctx context.Context, tx pgx.Tx, customerID string, orderID int64) error {
	version, err := lock(ctx, tx, customerID)
	if err != nil {
		return err
	}
	o, err := closeOrder(ctx, tx, customerID, orderID, "cancelled")
	if err != nil {
		return fmt.Errorf("cancel order %d: %w", orderID, err)
	}
	return s.publisher.Publish(ctx, tx, Cancelled{
		CustomerID: customerID, Version: version, OrderID: orderID, SKU: o.SKU, Quantity: o.Quantity,
	})
}

// lock takes the account's row until the transaction ends, and counts its
// version up. It comes before everything else: events of one customer are
// published by whoever holds this lock, and so one transaction after the other.
func lock(ctx context.Context, tx pgx.Tx, customerID string) (version int64, err error) {
	err = tx.QueryRow(ctx, `INSERT INTO accounts AS a (customer_id, version) VALUES ($1, 1)
		ON CONFLICT (customer_id) DO UPDATE SET version = a.version + 1 RETURNING version`, customerID).Scan(&version)
	if err != nil {
		return 0, fmt.Errorf("lock the account of customer %s: %w", customerID, err)
	}
	return version, nil
}

func closeOrder(ctx context.Context, tx pgx.Tx, customerID string, orderID int64, state string) (o Order, err error) {
	err = tx.QueryRow(ctx, `UPDATE orders SET state = $3 WHERE id = $1 AND customer_id = $2 AND state = 'open' RETURNING sku, quantity`,
		orderID, customerID, state).Scan(&o.SKU, &o.Quantity)
	if errors.Is(err, pgx.ErrNoRows) {
		return o, ErrNotOpen
	}
	return o, err
}
