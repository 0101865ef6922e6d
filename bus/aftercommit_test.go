package bus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// again subscribes a handler that publishes mailSent in a transaction of its own.
func again(w *world, heard *notes) {
	SubscribeAfterCommit(w.bus, func(ctx context.Context, e events.Event[orderPlaced]) error {
		return InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, mailSent{e.Data.OrderID})
		})
	})
	SubscribeAfterCommit(w.bus, func(_ context.Context, e events.Event[mailSent]) error {
		heard.add(e.EventType)
		return nil
	})
}

type ctxKey struct{}

func TestAfterCommitContext(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), ctxKey{}, "value"))
	var heard notes
	SubscribeAfterCommit(w.bus, func(ctx context.Context, e events.Event[orderPlaced]) error {
		if n := len(w.logged()); n != 2 {
			t.Errorf("%d events are committed", n)
		}
		cancel()
		if ctx.Err() != nil {
			t.Error("the caller's cancel reaches the handler")
		}
		if ctx.Value(ctxKey{}) != "value" {
			t.Error("the caller's values do not")
		}
		if events.Correlation(ctx) != e.CorrelationID {
			t.Error("no correlation")
		}
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > DefaultAfterCommitTimeout {
			t.Errorf("deadline %v, %v", end, ok)
		}
		heard.add(e.AggregateID)
		return nil
	})
	again(w, &heard)
	if err := InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, order(1), stockReserved{"1"})
	}); err != nil {
		t.Fatal(err)
	}
	heard.want(t, "1", "mail.sent")
}

func TestNoTimeout(t *testing.T) {
	w := newWorld(t)
	b, err := newBus(w.log, Config{AfterCommitTimeout: NoTimeout})
	if err != nil {
		t.Fatal(err)
	}
	called := false
	SubscribeAfterCommit(b, func(ctx context.Context, _ events.Event[orderPlaced]) error {
		_, has := ctx.Deadline()
		called = !has
		return nil
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { return b.Publish(ctx, tx, order(1)) })
	if !called {
		t.Fatal("not called, or with a deadline")
	}
}

func TestAfterCommitErrorsGoToTheHook(t *testing.T) {
	w := newWorld(t)
	cause := errors.New("cache is down")
	SubscribeAfterCommit(w.bus, func(context.Context, events.Event[orderPlaced]) error { return cause })
	SubscribeAfterCommit(w.bus, func(context.Context, events.Event[orderPlaced]) error { panic("boom") })
	announced := w.announced()
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { // fails unless InTx returns nil
		return w.bus.Publish(ctx, tx, order(1))
	})
	announced.want(t, "1") // called all the same
	var p *PanicError
	errs := w.hook.errs
	if len(errs) != 2 || !errs[0].AfterCommit || !errors.Is(errs[0], cause) || !errors.As(errs[1], &p) || p.Value != "boom" {
		t.Fatalf("the hook was told %v", errs)
	}
	if errs[0].EventID != w.logged()[0].EventID || errs[0].EventType != "order.placed" {
		t.Fatalf("of another event: %v", errs[0])
	}
}

func TestAfterCommitErrorsAreLogged(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&out, nil))
	for _, hook := range []func(context.Context, *HandlerError){nil, func(context.Context, *HandlerError) { panic("hook") }} {
		b, _ := newBus(w.log, Config{Logger: logger, OnAfterCommitError: hook})
		SubscribeAfterCommit(b, func(context.Context, events.Event[orderPlaced]) error { return errors.New("cache is down") })
		SubscribeAfterCommit(b, func(context.Context, events.Event[orderPlaced]) error { panic("boom") })
		w.inTx(func(ctx context.Context, tx pgx.Tx) error { return b.Publish(ctx, tx, order("secret")) })
	}
	for _, part := range []string{"level=WARN", "level=ERROR", "after-commit handler failed", "cache is down", "stack=", "event_type=order.placed", "Config.OnAfterCommitError panicked"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("not logged: %s", part)
		}
	}
	if strings.Contains(out.String(), "secret") {
		t.Errorf("payload logged: %s", out.String())
	}
}

// A handler that ends the goroutine takes InTx with it, but not the handlers
// after it.
func TestAfterCommitGoexit(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		SubscribeAfterCommit(w.bus, func(context.Context, events.Event[orderPlaced]) error {
			runtime.Goexit()
			return nil
		})
	}
	announced := w.announced()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, order(1), order(2))
		})
		t.Error("InTx returned")
	}()
	<-done
	announced.want(t, "1", "2")
	if len(w.hook.errs) != 4 || !errors.Is(w.hook.errs[0], errExited) {
		t.Fatalf("the hook was told %v", w.hook.errs)
	}
}
