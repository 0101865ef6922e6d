// Package refused holds what must not compile: TestWrongKindDoesNotCompile
// expects an error of the compiler in each line that says so, and in no other.
package refused

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
)

type placed struct{ ID string }

func (placed) EventType() string     { return "order.placed" }
func (placed) SchemaVersion() int    { return 1 }
func (e placed) AggregateID() string { return e.ID }

type misspelt struct{ ID string }

func (misspelt) EventType() string     { return "order.placed" }
func (misspelt) SchemaVersion() int    { return 1 }
func (e misspelt) AggregateId() string { return e.ID }

func inTx(context.Context, pgx.Tx, events.Event[placed]) error { return nil }
func afterCommit(context.Context, events.Event[placed]) error  { return nil }
func bare(context.Context, placed) error                       { return nil }
func nothing(context.Context, pgx.Tx) error                    { return nil }
func ofMisspelt(context.Context, pgx.Tx, misspelt) error       { return nil }
func pooled(ctx context.Context, pool *pgxpool.Pool) error     { return nil }
func sound(b *bus.EventBus, tx pgx.Tx, pool *pgxpool.Pool) error {
	bus.SubscribeInTx(b, inTx)
	bus.SubscribeAfterCommit(b, afterCommit)
	return bus.InTx(context.Background(), pool, nothing)
}

func refused(ctx context.Context, b *bus.EventBus, tx pgx.Tx, pool *pgxpool.Pool, conn *pgx.Conn) {
	_ = b.Publish(ctx, pool, placed{})           // ERROR a pool where a transaction belongs
	_ = b.Publish(ctx, conn, placed{})           // ERROR a connection where a transaction belongs
	_ = b.Publish(ctx, tx, misspelt{})           // ERROR a method is misspelt
	_ = bus.PublishAll(ctx, b, tx, []misspelt{}) // ERROR the same in a slice
	_ = bus.PublisherOf[misspelt](b)             // ERROR the same for a domain
	_ = bus.InTx(ctx, tx, nothing)               // ERROR a transaction where a pool belongs
	_ = bus.InTx(ctx, pool, pooled)              // ERROR fn wants a pool
	bus.SubscribeInTx(b, afterCommit)            // ERROR the wrong kind of handler
	bus.SubscribeAfterCommit(b, inTx)            // ERROR the wrong kind of handler
	bus.SubscribeInTx(b, bare)                   // ERROR a payload without its envelope
	bus.SubscribeInTx(b, ofMisspelt)             // ERROR no event at all
	_, _ = bus.New(nil)                          // ERROR no config
}
