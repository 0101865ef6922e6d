// Package payment takes the customers' money.
package payment

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Tables is what this package needs in the database.
const Tables = `
CREATE TABLE wallets (
    customer_id text   PRIMARY KEY,
    version     bigint NOT NULL,
    paid_cents  bigint NOT NULL
);`

// Publisher makes events public with the transaction, or not at all.
type Publisher interface {
	Publish(ctx context.Context, tx pgx.Tx, evs ...Event) error
}

// Payments is the cash desk.
type Payments struct {
	publisher Publisher
}

// New makes the cash desk; what happens at it is told to publisher.
func New(publisher Publisher) *Payments { return &Payments{publisher: publisher} }

// Receive books the payment of an order. Whether that order may be paid is not
// known here: whoever knows listens to Received, in the same transaction, and
// refuses it.
func (s *Payments) Receive(ctx context.Context, tx pgx.Tx, customerID string, orderID, cents int64) error {
	var version int64 // counted under the lock of the wallet's row
	err := tx.QueryRow(ctx, `INSERT INTO wallets AS w (customer_id, version, paid_cents) VALUES ($1, 1, $2)
		ON CONFLICT (customer_id) DO UPDATE SET version = w.version + 1, paid_cents = w.paid_cents + excluded.paid_cents
		RETURNING version`, customerID, cents).Scan(&version)
	if err != nil {
		return fmt.Errorf("book a payment of customer %s: %w", customerID, err)
	}
	return s.publisher.Publish(ctx, tx, Received{
		CustomerID: customerID, Version: version, OrderID: orderID, Cents: cents,
	})
}
