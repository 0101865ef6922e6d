package bus

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// noted is a middleware that says when it is entered and left.
func noted(n *notes, name string) Middleware {
	return func(next Next) Next {
		return func(ctx context.Context, d *Delivery) error {
			n.add(fmt.Sprintf("%s > %s %s %s", name, d.Kind, d.Handler, d.Event.AggregateID))
			err := next(context.WithValue(ctx, ctxKey{}, name), d)
			n.add(name + " <")
			return err
		}
	}
}

func TestMiddlewares(t *testing.T) {
	var calls notes
	b := offline(t, Config{Middlewares: []Middleware{noted(&calls, "outer"), noted(&calls, "inner")}})
	SubscribeInTx(b, listedInTx)
	SubscribeAfterCommit(b, listedAfter)
	SubscribeInTxTo(b, "mail.*", func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error {
		calls.add(fmt.Sprint("under ", ctx.Value(ctxKey{})))
		return b.Publish(ctx, tx, stockReserved{"2"}) // ctx still knows the transaction
	})
	publishOffline(t, b, order(1), mailSent{"m"})
	calls.want(t,
		"outer > in-tx bus.listedInTx 1", "inner > in-tx bus.listedInTx 1", "inner <", "outer <",
		"outer > in-tx bus.TestMiddlewares.func1 m", "inner > in-tx bus.TestMiddlewares.func1 m", "under inner", "inner <", "outer <",
		"outer > after-commit bus.listedAfter 2", "inner > after-commit bus.listedAfter 2", "inner <", "outer <")
}

func TestMiddlewareErrorsAndPanics(t *testing.T) {
	cause := errors.New("refused")
	var told hook
	var around func(ctx context.Context, d *Delivery, next Next) error
	b := offline(t, Config{OnAfterCommitError: told.told, Middlewares: []Middleware{func(next Next) Next {
		return func(ctx context.Context, d *Delivery) error { return around(ctx, d, next) }
	}}})
	calls := 0
	SubscribeInTx(b, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error {
		calls++
		return cause
	})
	publish := func(p events.Payload) error {
		return InTx(t.Context(), offlineDB{}, func(ctx context.Context, tx pgx.Tx) error { return b.Publish(ctx, tx, p) })
	}
	var panicked *PanicError

	around = func(ctx context.Context, d *Delivery, next Next) error { return fmt.Errorf("seen: %w", next(ctx, d)) }
	says(t, publish(order(1)), cause, "seen: refused", "handler bus.TestMiddlewareErrorsAndPanics")
	around = func(ctx context.Context, d *Delivery, next Next) error { panic("middleware") }
	if err := publish(order(1)); !errors.As(err, &panicked) || panicked.Value != "middleware" {
		t.Fatal(err)
	}
	around = func(ctx context.Context, d *Delivery, next Next) error {
		_, _ = next(ctx, d), next(ctx, d)
		return nil
	}
	if err := publish(order(1)); err != nil || calls != 3 {
		t.Fatalf("after %d calls: %v", calls, err)
	}
	around = func(ctx context.Context, d *Delivery, next Next) error { return nil }
	if err := publish(order(1)); err != nil || calls != 3 {
		t.Fatalf("after %d calls: %v", calls, err)
	}
	SubscribeAfterCommit(b, listedAfter)
	around = func(ctx context.Context, d *Delivery, next Next) error { return next(ctx, &Delivery{}) }
	says(t, publish(order(1)), errForeignDelivery)
	if err := publish(stockReserved{"1"}); err != nil || len(told.errs) != 1 || !errors.Is(told.errs[0], errForeignDelivery) {
		t.Fatalf("%v, the hook was told %v", err, told.errs)
	}
}

func TestBrokenMiddlewares(t *testing.T) {
	_, err := newBus(discard{}, Config{MaxDepth: -1, Middlewares: []Middleware{nil}})
	says(t, err, ErrInvalidConfig, "Config.Middlewares[0] is nil", "MaxDepth")
	b := offline(t, Config{Middlewares: []Middleware{func(Next) Next { return nil }}})
	says(t, wire[orderPlaced](b), ErrWiring, "Config.Middlewares[0] returned nil")
	defer func() { says(t, recover().(error), ErrWiring, `the pattern "*"`, "Config.Middlewares[0] returned nil") }()
	SubscribeInTxTo(b, "*", func(context.Context, pgx.Tx, events.DomainEvent) error { return nil })
}
