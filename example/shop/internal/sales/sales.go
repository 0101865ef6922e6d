// Package sales keeps a report of what was sold: a projection, which repeats in a
// handy form what the events have said, and can be written anew from them. It
// publishes nothing and has not heard of orders' events: the wiring calls it.
package sales

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Tables is what this package needs in the database.
const Tables = `
CREATE TABLE sales (
    sku       text   PRIMARY KEY,
    placed    bigint NOT NULL DEFAULT 0, -- orders
    paid      bigint NOT NULL DEFAULT 0,
    cancelled bigint NOT NULL DEFAULT 0,
    sold      bigint NOT NULL DEFAULT 0, -- pieces of orders that are paid
    cents     bigint NOT NULL DEFAULT 0  -- of all orders
);`

// Report counts up. Called twice for one event it counts it twice: it is up to the
// caller that it happens once.
type Report struct{}

// Placed counts an order.
func (Report) Placed(ctx context.Context, tx pgx.Tx, sku string, cents int64) error {
	return count(ctx, tx, sku, `INSERT INTO sales AS s (sku, placed, cents) VALUES ($1, 1, $2)
		ON CONFLICT (sku) DO UPDATE SET placed = s.placed + 1, cents = s.cents + excluded.cents`, cents)
}

// Paid counts an order that is paid.
func (Report) Paid(ctx context.Context, tx pgx.Tx, sku string, quantity int) error {
	return count(ctx, tx, sku, `INSERT INTO sales AS s (sku, paid, sold) VALUES ($1, 1, $2)
		ON CONFLICT (sku) DO UPDATE SET paid = s.paid + 1, sold = s.sold + excluded.sold`, quantity)
}

// Cancelled counts an order that is taken back.
func (Report) Cancelled(ctx context.Context, tx pgx.Tx, sku string) error {
	return count(ctx, tx, sku, `INSERT INTO sales AS s (sku, cancelled) VALUES ($1, 1)
		ON CONFLICT (sku) DO UPDATE SET cancelled = s.cancelled + 1`)
}

// Clear forgets everything, before the report is written anew. Nobody may be
// counting meanwhile.
func (Report) Clear(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, `TRUNCATE sales`); err != nil {
		return fmt.Errorf("clear the report: %w", err)
	}
	return nil
}

func count(ctx context.Context, tx pgx.Tx, sku, sql string, args ...any) error {
	if _, err := tx.Exec(ctx, sql, append([]any{sku}, args...)...); err != nil {
		return fmt.Errorf("report of %s: %w", sku, err)
	}
	return nil
}
