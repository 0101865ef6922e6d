// Package stock knows what is on the shelves, keeps what is ordered, and ships
// what is paid. It publishes nothing and has not heard of orders' events: the
// wiring calls it.
package stock

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Tables is what this package needs in the database.
const Tables = `
CREATE TABLE shelves (
    sku      text   PRIMARY KEY,
    free     bigint NOT NULL CHECK (free >= 0),
    reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0)
);
CREATE TABLE parcels (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id  bigint NOT NULL,
    label     text   NOT NULL,
    reference text   NOT NULL -- why it was sent: the id of the event
);`

var (
	// ErrSoldOut refuses a reservation.
	ErrSoldOut = errors.New("sold out")
	// ErrLabel says that no label can be made for a parcel; trying again does not help.
	ErrLabel = errors.New("the label cannot be made")
)

// Labeler makes the label of a parcel.
type Labeler interface {
	Label(orderID int64) (string, error)
}

// Stock is the store room.
type Stock struct {
	labeler Labeler
}

// New makes the store room.
func New(labeler Labeler) *Stock { return &Stock{labeler: labeler} }

// Fill puts pieces on a shelf.
func (s *Stock) Fill(ctx context.Context, tx pgx.Tx, sku string, quantity int) error {
	_, err := tx.Exec(ctx, `INSERT INTO shelves AS s (sku, free) VALUES ($1, $2)
		ON CONFLICT (sku) DO UPDATE SET free = s.free + excluded.free`, sku, quantity)
	if err != nil {
		return fmt.Errorf("fill the shelf of %s: %w", sku, err)
	}
	return nil
}

// Reserve keeps pieces for an order.
func (s *Stock) Reserve(ctx context.Context, tx pgx.Tx, sku string, quantity int) error {
	tag, err := tx.Exec(ctx, `UPDATE shelves SET free = free - $2, reserved = reserved + $2 WHERE sku = $1 AND free >= $2`, sku, quantity)
	if err == nil && tag.RowsAffected() == 0 {
		err = ErrSoldOut
	}
	if err != nil {
		return fmt.Errorf("reserve %d of %s: %w", quantity, sku, err)
	}
	return nil
}

// Release puts reserved pieces back on sale.
func (s *Stock) Release(ctx context.Context, tx pgx.Tx, sku string, quantity int) error {
	_, err := tx.Exec(ctx, `UPDATE shelves SET free = free + $2, reserved = reserved - $2 WHERE sku = $1`, sku, quantity)
	if err != nil {
		return fmt.Errorf("release %d of %s: %w", quantity, sku, err)
	}
	return nil
}

// Ship sends reserved pieces. Called twice it sends two parcels: it is up to
// the caller that it happens once.
func (s *Stock) Ship(ctx context.Context, tx pgx.Tx, orderID int64, sku string, quantity int, reference string) error {
	label, err := s.labeler.Label(orderID)
	if err != nil {
		return fmt.Errorf("ship order %d: %w: %w", orderID, ErrLabel, err)
	}
	batch := &pgx.Batch{}
	batch.Queue(`UPDATE shelves SET reserved = reserved - $2 WHERE sku = $1`, sku, quantity)
	batch.Queue(`INSERT INTO parcels (order_id, label, reference) VALUES ($1, $2, $3)`, orderID, label, reference)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("ship order %d: %w", orderID, err)
	}
	return nil
}
