package postbustest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
	"github.com/postbus/postbus/postbustest"
)

// durableWorld is a world with a bus, and a table that handlers write to.
func durableWorld(t testing.TB, which testkit.Server) (*world, *bus.EventBus) {
	t.Helper()
	w := newWorld(t, which)
	eventBus, err := bus.New(w.log, bus.Config{Pool: w.pool, Durable: outbox.DurableConfig{
		Retry: outbox.RetryConfig{Initial: time.Millisecond, Max: 10 * time.Millisecond, MaxAttempts: 3}, DrainTimeout: 10 * time.Millisecond,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.Exec(t.Context(), `CREATE TABLE `+w.schema+`.effects (seq bigint GENERATED ALWAYS AS IDENTITY, what text)`); err != nil {
		t.Fatal(err)
	}
	return w, eventBus
}

func (w *world) note(ctx context.Context, tx pgx.Tx, what string) error {
	_, err := tx.Exec(ctx, `INSERT INTO `+w.schema+`.effects (what) VALUES ($1)`, what)
	return err
}

func (w *world) noted(t testing.TB) (all string) {
	t.Helper()
	if err := w.pool.QueryRow(t.Context(), `SELECT coalesce(string_agg(what, ' ' ORDER BY seq), '') FROM `+w.schema+`.effects`).Scan(&all); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRunDurablesToEndHandlesAll(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			w, eventBus := durableWorld(t, which)
			// The second one gets what the first one publishes.
			bus.SubscribeDurable(eventBus, "first", bus.FromBeginning, func(ctx context.Context, tx pgx.Tx, e events.Event[OrderPlaced]) error {
				return eventBus.Publish(ctx, tx, OrderCancelled{OrderID: e.Data.OrderID})
			}, bus.Batch(10))
			bus.SubscribeDurable(eventBus, "second", bus.FromBeginning, func(ctx context.Context, tx pgx.Tx, e events.Event[OrderCancelled]) error {
				return w.note(ctx, tx, e.Data.OrderID)
			})
			run := func(want string) {
				t.Helper()
				if parked := postbustest.RunDurablesToEnd(t, w.pool, eventBus.Durables()); len(parked) != 0 {
					t.Errorf("parked: %+v", parked)
				}
				if got := w.noted(t); got != want {
					t.Errorf("the effects are %q, want %q", got, want)
				}
			}
			run("") // of an empty log
			want := ""
			for i := range 20 {
				w.commit(t, OrderPlaced{OrderID: fmt.Sprint("o-", i)})
				want += fmt.Sprint(" o-", i)
			}
			run(want[1:])
			run(want[1:]) // nothing twice
			open := w.begin(t)
			w.append(t.Context(), t, open, OrderPlaced{OrderID: "late"})
			w.commit(t, OrderPlaced{OrderID: "early"})
			run(want[1:] + " early") // the open one is not waited for
			if err := open.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			run(want[1:] + " early late")
		})
	}
}

// Failures that pass are outlived; what is given up is told, by handler, with what
// waits behind it, under either policy.
func TestRunDurablesToEndTellsWhatIsParked(t *testing.T) {
	t.Parallel()
	w, eventBus := durableWorld(t, testkit.PG15)
	failed := map[string]int{}
	refuses := func(name string) func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error {
		return func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error {
			switch {
			case e.AggregateID == "poison" && e.EventType == "order.placed":
				return bus.Permanent(errors.New("no such article"))
			case e.AggregateID == "passing" && name == "blocks" && failed[name] < 2:
				failed[name]++
				return errors.New("not now")
			}
			return w.note(ctx, tx, name+":"+e.AggregateID)
		}
	}
	bus.SubscribeDurableTo(eventBus, "blocks", bus.FromBeginning, "*", refuses("blocks"))
	bus.SubscribeDurableTo(eventBus, "skips", bus.FromBeginning, "*", refuses("skips"), bus.OnGivingUp(outbox.SkipKey))
	w.commit(t, OrderPlaced{OrderID: "poison"}, OrderCancelled{OrderID: "poison"}, OrderPlaced{OrderID: "passing"})
	parked := postbustest.RunDurablesToEnd(t, w.pool, eventBus.Durables())
	blocks, skips := parked["blocks"], parked["skips"]
	if len(parked) != 2 || len(blocks) != 2 || len(skips) != 1 || blocks[0].State != outbox.ParkedGivenUp || blocks[1].State != outbox.ParkedWaiting ||
		skips[0].State != outbox.ParkedGivenUp || skips[0].LastError == "" {
		t.Fatalf("parked: %+v", parked)
	}
	var n int
	if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM `+w.schema+`.effects WHERE what IN ('blocks:passing', 'skips:passing', 'skips:poison')`).Scan(&n); err != nil || n != 3 {
		t.Errorf("%d effects, want 3: %q (%v)", n, w.noted(t), err)
	}

	// What was asked of a desk is part of what has to be done.
	desk, err := outbox.NewDesk(w.pool, "blocks", outbox.DeskConfig{Schema: w.schema})
	if err != nil {
		t.Fatal(err)
	}
	if err := desk.Discard(t.Context(), blocks[0].LogID); err != nil {
		t.Fatal(err)
	}
	parked = postbustest.RunDurablesToEnd(t, w.pool, eventBus.Durables())
	if len(parked) != 1 || len(parked["skips"]) != 1 {
		t.Errorf("parked: %+v", parked)
	}
}

func TestRunDurablesToEndSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	w, eventBus := durableWorld(t, testkit.PG15)
	bus.SubscribeDurableTo(eventBus, "stock.ledger", bus.FromBeginning, "*", func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error {
		if e.AggregateID == "o-1" {
			return errors.New("not today")
		}
		return nil
	}, bus.Retry(outbox.RetryConfig{Initial: time.Millisecond, Max: 10 * time.Millisecond, MaxAttempts: 1_000_000}))
	bus.SubscribeDurableTo(eventBus, "audit", bus.FromBeginning, "*", func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error { return nil })
	w.commit(t, OrderPlaced{OrderID: "o-1"}, OrderCancelled{OrderID: "o-1"}, OrderPlaced{OrderID: "o-2"})
	mustFail(t, func(t testing.TB) {
		postbustest.RunDurablesToEnd(t, w.pool, eventBus.Durables(), postbustest.Within(3*time.Second))
	}, "2 durable handlers", "within 3s", `left to "stock.ledger" are 2:`, `event 1: retrying  order.placed  key "o-1"`, "attempts: durable handler", "not today", "event 2: waiting")

	desk, err := outbox.NewDesk(w.pool, "audit", outbox.DeskConfig{Schema: w.schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := desk.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	audit := eventBus.Durables()[1:]
	postbustest.RunDurablesToEnd(t, w.pool, audit) // which pauses it
	w.commit(t, OrderPlaced{OrderID: "o-3"})
	mustFail(t, func(t testing.TB) {
		postbustest.RunDurablesToEnd(t, w.pool, audit, postbustest.Within(200*time.Millisecond))
	}, `left to "audit" are 1, while it is paused`)
}

func TestRunDurablesToEndWithOneThatHangs(t *testing.T) {
	t.Parallel()
	w, eventBus := durableWorld(t, testkit.PG15)
	bus.SubscribeDurable(eventBus, "hangs", bus.FromBeginning, func(ctx context.Context, tx pgx.Tx, e events.Event[OrderPlaced]) error {
		<-ctx.Done()
		return ctx.Err()
	})
	w.commit(t, OrderPlaced{OrderID: "o-1"})
	mustFail(t, func(t testing.TB) {
		postbustest.RunDurablesToEnd(t, w.pool, eventBus.Durables(), postbustest.Within(2*time.Second))
	}, `left to "hangs" are 1:`, "event 1: not settled yet", "hangs")
}

func TestRunDurablesToEndRefuses(t *testing.T) {
	t.Parallel()
	w, eventBus := durableWorld(t, testkit.PG15)
	run := func(ds ...*outbox.Durable) func(t testing.TB) {
		return func(t testing.TB) { postbustest.RunDurablesToEnd(t, w.pool, ds) }
	}
	mustFail(t, run(eventBus.Durables()...), "no durable handler", "EventBus.Durables")
	mustFail(t, run(nil), "nil")
	h := func(context.Context, *outbox.Tx, *outbox.Message) error { return nil }
	elsewhere, err := outbox.NewDurable(w.pool, h, outbox.DurableConfig{Name: "x", Schema: "no_such_schema_here"})
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, run(elsewhere), "migrations.Up")
	stopped, err := outbox.NewDurable(w.pool, h, outbox.DurableConfig{Name: "x", Schema: w.schema})
	if err != nil {
		t.Fatal(err)
	}
	stopped.Stop()
	w.commit(t, OrderPlaced{OrderID: "o-1"})
	mustFail(t, run(stopped), "ended before the end of the log")
	one, err := outbox.NewDurable(w.pool, h, outbox.DurableConfig{Name: "x", Schema: w.schema})
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, run(one, one), "ended before the end of the log", "two of them")
}
