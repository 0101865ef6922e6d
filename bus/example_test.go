package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

// OrderPlaced is an event: a plain struct with three methods. The file that
// declares it needs no import of ours.
type OrderPlaced struct {
	OrderID    string `json:"order_id"`
	TotalCents int64  `json:"total_cents"`
}

func (OrderPlaced) EventType() string     { return "order.placed" }
func (OrderPlaced) SchemaVersion() int    { return 1 }
func (e OrderPlaced) AggregateID() string { return e.OrderID }

type StockReserved struct {
	OrderID string `json:"order_id"`
}

func (StockReserved) EventType() string     { return "stock.reserved" }
func (StockReserved) SchemaVersion() int    { return 1 }
func (e StockReserved) AggregateID() string { return e.OrderID }

func Example() {
	ctx := context.Background()
	pool, eventBus, done := open()
	defer done()

	bus.SubscribeInTx(eventBus, func(ctx context.Context, tx pgx.Tx, e events.Event[OrderPlaced]) error {
		if e.Data.TotalCents > 1_000_000 {
			return errors.New("more than we have in stock")
		}
		return eventBus.Publish(ctx, tx, StockReserved{OrderID: e.Data.OrderID}) // in the same transaction
	})
	bus.SubscribeAfterCommit(eventBus, func(_ context.Context, e events.Event[StockReserved]) error {
		fmt.Println("reserved for", e.Data.OrderID)
		return nil
	})

	place := func(o OrderPlaced) error {
		return bus.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
			// Your own rows are written here, through tx.
			return eventBus.Publish(ctx, tx, o)
		})
	}
	fmt.Println(place(OrderPlaced{OrderID: "o-1", TotalCents: 4200}))
	fmt.Println(place(OrderPlaced{OrderID: "o-2", TotalCents: 9_999_999}) != nil)
	// Output:
	// reserved for o-1
	// <nil>
	// true
}

// An aggregate collects its events as a type of its own.
func ExamplePublishAll() {
	pool, eventBus, done := open()
	defer done()
	bus.SubscribeAfterCommit(eventBus, func(_ context.Context, e events.Event[OrderPlaced]) error {
		fmt.Println(e.Data.OrderID)
		return nil
	})

	collected := []OrderPlaced{{OrderID: "o-1"}, {OrderID: "o-2"}} // order.Events()
	err := bus.InTx(context.Background(), pool, func(ctx context.Context, tx pgx.Tx) error {
		return bus.PublishAll(ctx, eventBus, tx, collected)
	})
	fmt.Println(err)
	// Output:
	// o-1
	// o-2
	// <nil>
}

// What may fail without failing the whole stands in a savepoint. What is undone
// with it is not announced.
func ExampleInTx_savepoint() {
	pool, eventBus, done := open()
	defer done()
	bus.SubscribeAfterCommit(eventBus, func(_ context.Context, e events.Event[OrderPlaced]) error {
		fmt.Println("placed", e.Data.OrderID)
		return nil
	})

	err := bus.InTx(context.Background(), pool, func(ctx context.Context, tx pgx.Tx) error {
		for _, id := range []string{"o-1", "o-2", "o-3"} {
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				if err := eventBus.Publish(ctx, tx, OrderPlaced{OrderID: id}); err != nil {
					return err
				}
				if id == "o-2" {
					return errors.New("not this one")
				}
				return nil
			})
			if err != nil {
				fmt.Println(err)
			}
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// not this one
	// placed o-1
	// placed o-3
	// <nil>
}

// A transaction that the application begins and commits itself.
func ExampleFollow() {
	ctx := context.Background()
	pool, eventBus, done := open()
	defer done()
	bus.SubscribeAfterCommit(eventBus, func(_ context.Context, e events.Event[OrderPlaced]) error {
		fmt.Println("placed", e.Data.OrderID)
		return nil
	})

	place := func(id string) error {
		raw, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		tx, err := bus.Follow(ctx, raw)
		if err != nil {
			return errors.Join(err, raw.Rollback(ctx))
		}
		defer tx.Rollback(ctx) // does nothing after Commit
		if err := eventBus.Publish(ctx, tx, OrderPlaced{OrderID: id}); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}
	fmt.Println(place("o-1"))
	// Output:
	// placed o-1
	// <nil>
}

// Typed events within the process, without a database.
func ExampleDispatch() {
	local, err := bus.NewLocal(bus.LocalConfig{})
	if err != nil {
		log.Panic(err)
	}
	mail := bus.Subscribe(local, func(_ context.Context, e events.Event[OrderPlaced]) error {
		fmt.Println("mail about", e.Data.OrderID)
		return nil
	})
	fmt.Println(bus.Dispatch(context.Background(), local, OrderPlaced{OrderID: "o-1"}))
	mail.Cancel()
	fmt.Println(bus.Dispatch(context.Background(), local, OrderPlaced{OrderID: "o-2"}))
	// Output:
	// mail about o-1
	// <nil>
	// <nil>
}

// An auditor hears of every event, in the transaction; a middleware and the
// metadata of the context concern all handlers and all events.
func ExampleSubscribeInTxTo() {
	type tenantKey struct{}
	pool, eventBus, done := openWith(bus.Config{
		Metadata: func(ctx context.Context) map[string]string {
			tenant, _ := ctx.Value(tenantKey{}).(string)
			return map[string]string{"tenant": tenant}
		},
		Middlewares: []bus.Middleware{func(next bus.Next) bus.Next {
			return func(ctx context.Context, d *bus.Delivery) error {
				err := next(ctx, d)
				fmt.Println(d.Kind, "handler of", d.Event.EventType, "returned", err)
				return err
			}
		}},
	})
	defer done()
	bus.SubscribeInTxTo(eventBus, "order.*", func(_ context.Context, tx pgx.Tx, e events.DomainEvent) error {
		fmt.Printf("%s of %s: %s\n", e.EventType, e.Metadata["tenant"], e.Data) // or written through tx
		return nil
	})

	ctx := context.WithValue(context.Background(), tenantKey{}, "acme")
	err := bus.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		return eventBus.Publish(ctx, tx, OrderPlaced{OrderID: "o-1", TotalCents: 4200}, StockReserved{OrderID: "o-1"})
	})
	fmt.Println(err)
	// Output:
	// order.placed of acme: {"order_id":"o-1","total_cents":4200}
	// in-tx handler of order.placed returned <nil>
	// <nil>
}

// The errors that a caller may want to tell apart.
func ExampleInTx_errors() {
	pool, eventBus, done := open()
	defer done()

	err := bus.InTx(context.Background(), pool, func(ctx context.Context, tx pgx.Tx) error {
		return eventBus.Publish(ctx, tx, OrderPlaced{}) // of no order
	},
		bus.WithTxOptions(pgx.TxOptions{IsoLevel: pgx.Serializable}),
		bus.RetryConflicts(5),
	)
	var unknown *bus.CommitUnknownError
	switch {
	case err == nil:
		fmt.Println("committed")
	case errors.As(err, &unknown):
		fmt.Println("look for event", unknown.EventIDs, "before trying again")
	case errors.Is(err, bus.ErrConflict):
		fmt.Println("too much contention: try later")
	case errors.Is(err, events.ErrInvalidEvent):
		fmt.Println("a mistake in the program, and nothing was written")
	default:
		fmt.Println("rolled back:", err)
	}
	// Output: a mistake in the program, and nothing was written
}

// open connects to the test's server, where an application would use
// pgxpool.New, in a schema that done drops.
func open() (pool *pgxpool.Pool, eventBus *bus.EventBus, done func()) {
	return openWith(bus.Config{})
}

func openWith(cfg bus.Config) (pool *pgxpool.Pool, eventBus *bus.EventBus, done func()) {
	t := &exampleT{}
	schema := testkit.Schema(t)
	pool = testkit.Postgres(t, testkit.PG15)
	if err := migrations.Up(context.Background(), pool, schema); err != nil {
		log.Panic(err)
	}
	outboxLog, err := outbox.NewLog(outbox.LogConfig{Schema: schema})
	if err != nil {
		log.Panic(err)
	}
	eventBus, err = bus.New(outboxLog, cfg)
	if err != nil {
		log.Panic(err)
	}
	return pool, eventBus, t.end
}

// exampleT lets an example use the kit of the tests.
type exampleT struct {
	testing.TB
	cleanups []func()
}

func (t *exampleT) Helper()                           {}
func (t *exampleT) Name() string                      { return "Example" }
func (t *exampleT) Failed() bool                      { return false }
func (t *exampleT) Cleanup(f func())                  { t.cleanups = append(t.cleanups, f) }
func (t *exampleT) Fatal(args ...any)                 { log.Panic(args...) }
func (t *exampleT) Fatalf(format string, args ...any) { log.Panicf(format, args...) }
func (t *exampleT) Error(args ...any)                 { log.Panic(args...) }
func (t *exampleT) Errorf(format string, args ...any) { log.Panicf(format, args...) }

func (t *exampleT) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}
