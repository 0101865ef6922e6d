package bus

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

// The cycle is found whether handlers pass their ctx on or not.
func TestCycleIsNamed(t *testing.T) {
	for _, lost := range []bool{false, true} {
		w := newWorld(t)
		under := func(ctx context.Context) context.Context {
			if lost {
				return context.Background()
			}
			return ctx
		}
		SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[mailSent]) error {
			return w.bus.Publish(under(ctx), tx, orderPlaced{OrderID: "1"})
		})
		SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
			return w.bus.Publish(under(ctx), tx, stockReserved{"1"})
		})
		SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[stockReserved]) error {
			return w.bus.Publish(under(ctx), tx, orderPlaced{OrderID: "1"})
		})
		err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, mailSent{"1"})
		})
		says(t, err, ErrTooDeep, "stock.reserved -> order.placed -> stock.reserved", "16 levels")
		var deep *DepthError
		if !errors.As(err, &deep) || len(deep.Path) != 17 || deep.Path[0] != "mail.sent" || len(deep.Cycle) != 3 {
			t.Fatalf("%+v", deep)
		}
		equal(t, w.loggedKeys())
	}
}

func TestSameTypeThreeLevels(t *testing.T) {
	w := newWorldAt(t, testkit.PG15, Config{MaxDepth: 3})
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		if len(e.Data.OrderID) == 3 {
			return nil
		}
		return w.bus.Publish(ctx, tx, order(e.Data.OrderID+"x"))
	})
	publish := func(id string) error {
		return InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, order(id))
		})
	}
	if err := publish("x"); err != nil {
		t.Fatal(err)
	}
	equal(t, w.loggedKeys(), "order.placed x", "order.placed xx", "order.placed xxx")
	says(t, publish("longer"), ErrTooDeep, "order.placed -> order.placed:", "3 levels")
}

func TestLongChainIsNoCycle(t *testing.T) {
	w := newWorldAt(t, testkit.PG15, Config{MaxDepth: 1})
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		return w.bus.Publish(ctx, tx, stockReserved{"1"})
	})
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, order(1))
	})
	says(t, err, ErrTooDeep, "order.placed -> stock.reserved: shorten the chain")
}

// A handler after the commit that publishes its own event in a transaction of its
// own would otherwise grow the stack without end.
func TestCycleAfterCommit(t *testing.T) {
	w := newWorld(t)
	SubscribeAfterCommit(w.bus, func(ctx context.Context, e events.Event[orderPlaced]) error {
		return InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, order(1))
		})
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order(1)) })
	if n := len(w.logged()); n != DefaultMaxDepth {
		t.Fatalf("%d events in the log", n)
	}
	if len(w.hook.errs) != 1 || !errors.Is(w.hook.errs[0], ErrTooDeep) || !strings.Contains(w.hook.errs[0].Error(), "order.placed -> order.placed") {
		t.Fatalf("the hook was told %v", w.hook.errs)
	}
}

// In somebody else's transaction too.
func TestCycleInSomebodyElsesTransaction(t *testing.T) {
	w := newWorld(t)
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		return w.bus.Publish(context.Background(), tx, order(1))
	})
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error { return w.bus.Publish(t.Context(), tx, order(1)) })
	says(t, err, ErrTooDeep)
}
