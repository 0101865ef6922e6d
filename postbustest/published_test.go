package postbustest_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/postbustest"
)

func TestInTxSeesItsOwnOnly(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, which)
			ctx := t.Context()
			w.commit(t, OrderPlaced{OrderID: "earlier"})
			tx := w.begin(t)
			mine := postbustest.InTx(tx, w.schema)
			postbustest.RequireNothingPublished(t, mine) // has not even an xid

			w.append(ctx, t, tx, OrderPlaced{OrderID: "o-1", Cents: 5})
			kept, err := tx.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w.append(ctx, t, kept, events.With(OrderPlaced{OrderID: "o-2"}, events.PartitionKey("k")))
			if err := kept.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			undone, err := tx.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w.append(ctx, t, undone, OrderPlaced{OrderID: "o-3"})
			postbustest.RequirePublished[OrderPlaced](t, mine, postbustest.WithKey("o-3"))
			if err := undone.Rollback(ctx); err != nil {
				t.Fatal(err)
			}

			got := postbustest.RequirePublished[OrderPlaced](t, mine, postbustest.Times(2))
			if got[0].Data != (OrderPlaced{OrderID: "o-1", Cents: 5}) || got[1].Data.OrderID != "o-2" || got[1].Key() != "k" {
				t.Errorf("got %+v", got)
			}
			postbustest.RequirePublished[OrderPlaced](t, postbustest.InLog(tx, w.schema), postbustest.Times(3))
			postbustest.RequirePublished[OrderPlaced](t, postbustest.InLog(w.pool, w.schema), postbustest.Times(1), postbustest.WithKey("earlier"))
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			postbustest.RequirePublished[OrderPlaced](t, postbustest.InLog(w.pool, w.schema), postbustest.Times(3))
		})
	}
}

func TestOptionsNarrow(t *testing.T) {
	t.Parallel()
	var told postbustest.Bus[events.Payload]
	if err := told.Publish(t.Context(), nil, OrderPlaced{OrderID: "a", Cents: 1}, OrderPlaced{OrderID: "a", Cents: 9}, OrderPlaced{OrderID: "b", Cents: 9}); err != nil {
		t.Fatal(err)
	}
	dear := postbustest.Where(func(e events.Event[OrderPlaced]) bool { return e.Data.Cents > 5 })
	postbustest.RequirePublished[OrderPlaced](t, &told, postbustest.Times(3))
	postbustest.RequirePublished[OrderPlaced](t, &told, dear, postbustest.Times(2))
	postbustest.RequirePublished[OrderPlaced](t, &told, dear, postbustest.WithKey("a"), postbustest.Times(1))
	postbustest.RequirePublished[OrderCancelled](t, &told, postbustest.Times(0))

	mustFail(t, func(t testing.TB) { postbustest.RequirePublished[OrderCancelled](t, &told) },
		"0 events postbustest_test.OrderCancelled, want at least one", `order.placed v1  key "b"`, `{"order_id":"b","cents":9}`)
	mustFail(t, func(t testing.TB) {
		postbustest.RequirePublished[OrderPlaced](t, &told, dear, postbustest.WithKey("b"), postbustest.Times(4))
	}, "published to the bus: 1 events", "that Where accepts", `with the key "b"`, "want 4")
	mustFail(t, func(t testing.TB) { postbustest.RequireNothingPublished(t, &told) }, "3 events, want none", `key "a"`)
	mustFail(t, func(t testing.TB) {
		postbustest.RequirePublished[OrderPlaced](t, &told, postbustest.Where(func(events.Event[OrderCancelled]) bool { return true }))
	}, "OrderCancelled", "same type")
	mustFail(t, func(t testing.TB) { postbustest.RequirePublished[*OrderPlaced](t, &told) }, "not a pointer")
	mustFail(t, func(t testing.TB) { postbustest.RequirePublished[events.Payload](t, &told) }, "an interface")
}

// A type that does not fit its wire name is a fault of the test, and no "none found".
func TestDataThatDoesNotFitFails(t *testing.T) {
	t.Parallel()
	var told postbustest.Bus[events.Payload]
	e := events.DomainEvent{EventType: "order.placed", AggregateID: "a", Data: []byte(`{"cents":"many"}`)}
	if err := told.Publish(t.Context(), nil, events.Raw(e)); err != nil {
		t.Fatal(err)
	}
	mustFail(t, func(t testing.TB) { postbustest.RequirePublished[OrderPlaced](t, &told) }, "cents", "order.placed")
}

func TestReadingTheLogSaysTheWayOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testkit.PG15)
	look := func(db postbustest.Querier, schema string) func(testing.TB) {
		return func(t testing.TB) { postbustest.RequireNothingPublished(t, postbustest.InLog(db, schema)) }
	}
	mustFail(t, look(nil, w.schema), "is nil")
	mustFail(t, look(w.pool, "no_such_schema_here"), "postbustest.Schema")
	mustFail(t, look(w.pool, "Not Usable"), "lower-case")
	mustFail(t, func(t testing.TB) { postbustest.RequireNothingPublished(t, postbustest.InTx(nil, w.schema)) }, "is nil")

	failed := w.begin(t)
	if _, err := failed.Exec(t.Context(), `SELECT 1/0`); err == nil {
		t.Fatal("no error")
	}
	mustFail(t, func(t testing.TB) { postbustest.RequireNothingPublished(t, postbustest.InTx(failed, w.schema)) }, "has failed before")
	if err := failed.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	mustFail(t, func(t testing.TB) { postbustest.RequireNothingPublished(t, postbustest.InTx(pgx.Tx(failed), w.schema)) }, "has ended", "InLog")
}
