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
	"github.com/postbus/postbus/internal/testkit"
)

// follow begins a transaction as an application does that owns it.
func (w *world) follow() (raw pgx.Tx, tx *Tx) {
	w.t.Helper()
	raw, err := w.pool.Begin(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = raw.Rollback(context.Background()) })
	if tx, err = Follow(w.t.Context(), raw); err != nil {
		w.t.Fatal(err)
	}
	return raw, tx
}

// txInCtx is how many applications carry their transaction.
type txInCtx struct{}

func TestFollowedCommitAnnounces(t *testing.T) {
	for _, by := range []string{"Commit", "Committed", "SQL"} {
		t.Run(by, func(t *testing.T) {
			w := newWorld(t)
			announced := w.announced()
			SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
				if _, inner := tx.(*savepoint); !inner {
					says(t, tx.Commit(ctx), errCommitInside)
				}
				return w.insert(ctx, tx, e.Data.OrderID)
			})
			ctx := t.Context()
			raw, tx := w.follow()
			if err := w.bus.Publish(ctx, tx, order(1)); err != nil {
				t.Fatal(err)
			}
			says(t, pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				return errors.Join(w.bus.Publish(ctx, tx, order(2)), errUndo)
			}), errUndo)
			if err := w.bus.Publish(ctx, tx, order(3)); err != nil {
				t.Fatal(err)
			}
			announced.want(t)
			if w.log.hints.Load() != 3 || w.log.wakes.Load() != 0 {
				t.Fatalf("before the commit: %d hints, %d wakes", w.log.hints.Load(), w.log.wakes.Load())
			}
			var err error
			switch by {
			case "Commit":
				err = tx.Commit(ctx)
			case "Committed":
				says(t, tx.Committed(ctx), errStillOpen)
				err = errors.Join(raw.Commit(ctx), tx.Committed(ctx))
			case "SQL":
				_, err = raw.Exec(ctx, "COMMIT")
				err = errors.Join(err, tx.Committed(ctx))
			}
			if err != nil {
				t.Fatal(err)
			}
			announced.want(t, "1", "3")
			equal(t, w.loggedKeys(), "order.placed 1", "order.placed 3")
			equal(t, w.effects(), "1", "3")
			if n := w.log.wakes.Load(); n != 1 {
				t.Fatalf("the relay was woken %d times", n)
			}
			says(t, tx.Commit(ctx), pgx.ErrTxClosed)
			says(t, tx.Rollback(ctx), pgx.ErrTxClosed)
			says(t, tx.Committed(ctx), pgx.ErrTxClosed, "known already")
			says(t, w.bus.Publish(ctx, tx, order(4)), nil, "no longer valid")
		})
	}
}

func TestFollowedRollbackAnnouncesNothing(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	publish := func() (raw pgx.Tx, tx *Tx) {
		raw, tx = w.follow()
		if err := w.bus.Publish(t.Context(), tx, order(1)); err != nil {
			t.Fatal(err)
		}
		return raw, tx
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	_, tx := publish()
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	says(t, tx.Commit(t.Context()), pgx.ErrTxClosed)

	_, tx = publish()
	says(t, tx.Commit(ctx), context.Canceled, "commit: rolled back")

	_, tx = publish()
	_ = w.bus.Publish(t.Context(), tx, order("")) // dropped
	says(t, tx.Commit(t.Context()), ErrDoomed, "aggregate_id")

	_, tx = publish()
	_, _ = tx.Exec(t.Context(), "SELECT 1/0")
	says(t, tx.Commit(t.Context()), pgx.ErrTxCommitRollback)

	raw, tx := publish()
	if err := raw.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	says(t, tx.Commit(t.Context()), pgx.ErrTxClosed, "call Committed")
	says(t, tx.Rollback(t.Context()), pgx.ErrTxClosed)

	announced.want(t)
	equal(t, w.loggedKeys())
	if n := w.pool.Stat().AcquiredConns(); n != 0 {
		t.Fatalf("%d connections are still in use", n)
	}
}

// Committed although a Publish had failed: what is in the log is announced, and
// the caller hears that it is half of what was meant.
func TestCommittedAlthoughDoomed(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	raw, tx := w.follow()
	if err := w.bus.Publish(t.Context(), tx, order(1)); err != nil {
		t.Fatal(err)
	}
	_ = w.bus.Publish(t.Context(), tx, order(""))
	if err := raw.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	says(t, tx.Committed(t.Context()), ErrDoomed)
	announced.want(t, "1")
	equal(t, w.loggedKeys(), "order.placed 1")
}

func TestFollowRefuses(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	raw, tx := w.follow()
	inner, err := raw.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	follow := func(ctx context.Context, tx pgx.Tx) error {
		_, err := Follow(ctx, tx)
		return err
	}
	says(t, follow(nil, raw), errFollowNoCtx)
	says(t, follow(ctx, nil), errFollowNothing)
	says(t, follow(ctx, (*wrapped)(nil)), errFollowNothing)
	says(t, follow(ctx, inner), errFollowInner)
	says(t, follow(ctx, tx), errFollowed)
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		says(t, follow(ctx, tx), errFollowed)
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			says(t, follow(ctx, tx), errFollowed)
			return nil
		})
	})
	// Not through the Tx: the bus would not know.
	w.announced()
	says(t, w.bus.Publish(ctx, raw, order(1)), ErrNotInTx, "bus.Follow")
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	says(t, follow(ctx, raw), pgx.ErrTxClosed)
}

// A transaction that is dropped is found, although the contexts of its
// publications lead back to it; one that was ended, or has nothing to announce,
// is not.
func TestForgottenTransactionIsMadeVisible(t *testing.T) {
	told := make(chan *ForgottenError, 10)
	w := newWorldAt(t, testkit.PG15, Config{OnForgotten: func(err *ForgottenError) { told <- err }})
	w.announced()
	w.announced()
	drop := func(end func(raw pgx.Tx, tx *Tx) error, p events.Payload) {
		raw, tx := w.follow()
		ctx := context.WithValue(t.Context(), txInCtx{}, tx)
		if err := w.bus.Publish(ctx, tx, p); err != nil {
			t.Fatal(err)
		}
		if err := end(raw, tx); err != nil {
			t.Fatal(err)
		}
	}
	drop(func(_ pgx.Tx, tx *Tx) error { return tx.Commit(t.Context()) }, order("committed"))
	drop(func(_ pgx.Tx, tx *Tx) error { return tx.Rollback(t.Context()) }, order("rolled back"))
	drop(func(raw pgx.Tx, _ *Tx) error { return raw.Commit(t.Context()) }, mailSent{"nobody's"})
	drop(func(raw pgx.Tx, _ *Tx) error { return raw.Commit(t.Context()) }, order("forgotten"))
	var err *ForgottenError
	testkit.Eventually(t, 10*time.Second, func() bool {
		runtime.GC()
		select {
		case err = <-told:
			return true
		default:
			return false
		}
	}, "the dropped transaction is found")
	says(t, err, ErrForgotten, "order.placed", "world", "bus.Follow")
	if last := w.logged()[2]; err.EventID != last.EventID || len(err.Handlers) != 2 {
		t.Fatalf("%+v is not about %s", err, last.EventID)
	}
	runtime.GC()
	if len(told) != 0 {
		t.Fatalf("also told: %v", <-told)
	}
}

func TestForgottenIsLogged(t *testing.T) {
	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&out, nil))
	for _, hook := range []func(*ForgottenError){nil, func(*ForgottenError) { panic("hook") }} {
		b := offline(t, Config{Logger: logger, OnForgotten: hook})
		r := &reminder{}
		h := SubscribeAfterCommit(b, listedAfter)
		for range 2 {
			r.note(announcement{handler: h, event: &occurrence{envelope: &events.DomainEvent{EventType: "order.placed"}}})
		}
		r.forgotten() // must not panic
	}
	for _, part := range []string{"level=WARN", "a followed transaction was dropped", "handlers=\"[bus.listedAfter bus.listedAfter]\"", "Config.OnForgotten panicked"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("not logged: %s in %s", part, out.String())
		}
	}
}
