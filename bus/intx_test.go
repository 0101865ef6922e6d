package bus

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

func TestPanicInFnRollsBackAndGoesOn(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	func() {
		defer func() {
			if v := recover(); v != "boom" {
				t.Errorf("recovered %v", v)
			}
		}()
		_ = InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			if err := w.bus.Publish(ctx, tx, order(1)); err != nil {
				t.Error(err)
			}
			panic("boom")
		})
	}()
	var exited sync.WaitGroup
	exited.Go(func() {
		_ = InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			if err := w.bus.Publish(ctx, tx, order(2)); err != nil {
				t.Error(err)
			}
			runtime.Goexit()
			return nil
		})
	})
	exited.Wait()
	equal(t, w.loggedKeys())
	announced.want(t)
	if n := w.pool.Stat().AcquiredConns(); n != 0 {
		t.Fatalf("%d connections are still in use", n)
	}
}

func TestEndedContextIsNotCommitted(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	tired := errors.New("tired")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
		err := w.bus.Publish(ctx, tx, order(1))
		cancel(tired)
		return err
	})
	says(t, err, context.Canceled, "before the commit")
	says(t, err, tired)
	equal(t, w.loggedKeys())
	announced.want(t)
	if w.pool.Stat().TotalConns() == 0 {
		t.Fatal("the connection did not survive: the rollback was not sent")
	}
}

func TestFnMustNotEndTheTransaction(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	run := func(end func(ctx context.Context, tx pgx.Tx) error) error {
		return InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			if err := w.bus.Publish(ctx, tx, order(1)); err != nil {
				return err
			}
			return end(ctx, tx)
		})
	}
	says(t, run(func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }), nil, "commits it when fn returns nil")
	says(t, run(func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) }), ErrDoomed, "called Rollback")
	says(t, run(func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "ROLLBACK")
		return err
	}), nil, "by SQL text")
	says(t, run(func(ctx context.Context, tx pgx.Tx) error {
		_, _ = tx.Exec(ctx, "SELECT 1/0") // swallowed
		return nil
	}), pgx.ErrTxCommitRollback, "a statement had failed")
	says(t, run(func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Query(ctx, "SELECT generate_series(1, 1000)") // never closed
		return err
	}), nil, "rows that were left open")
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[mailSent]) error {
		return tx.Rollback(ctx)
	})
	says(t, run(func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, mailSent{"1"})
	}), ErrDoomed, "called Rollback")
	equal(t, w.loggedKeys())
	announced.want(t)
}

func TestConnectionInUse(t *testing.T) {
	w := newWorld(t)
	pooled, err := w.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer pooled.Release()
	for _, db := range []TxBeginner{pooled.Conn(), pooled} {
		nothing := func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order(1)) }
		if err := InTx(t.Context(), db, nothing); err != nil {
			t.Fatal(err)
		}
		err := InTx(t.Context(), db, func(ctx context.Context, tx pgx.Tx) error {
			return InTx(ctx, db, nothing)
		})
		says(t, err, nil, "in a transaction already")
	}
	if n := len(w.loggedKeys()); n != 2 {
		t.Fatalf("%d events in the log", n)
	}
}

func TestInTxInsideInTxIsAnotherTransaction(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := w.bus.Publish(ctx, tx, order("outer")); err != nil {
			return err
		}
		if err := InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, order("inner"))
		}); err != nil {
			return err
		}
		return errUndo
	})
	if err != errUndo {
		t.Fatal(err)
	}
	announced.want(t, "inner")
	equal(t, w.loggedKeys(), "order.placed inner")
}

func TestServerRefusesTheCommit(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	w.exec("ALTER TABLE " + w.table() + " ADD CONSTRAINT later UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO "+w.table()+" VALUES ('a', 1), ('b', 1)"); err != nil {
			return err
		}
		return w.bus.Publish(ctx, tx, order(1))
	})
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "23505" || errors.Is(err, ErrCommitUnknown) {
		t.Fatal(err)
	}
	equal(t, w.loggedKeys())
	announced.want(t)
}

func TestBeginFails(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := InTx(ctx, w.pool, func(context.Context, pgx.Tx) error { t.Error("called"); return nil })
	says(t, err, context.Canceled, "begin")
}

func TestTxOptions(t *testing.T) {
	w := newWorld(t)
	for level, opts := range map[string][]TxOption{
		"read committed":  nil,
		"repeatable read": {WithTxOptions(pgx.TxOptions{IsoLevel: pgx.RepeatableRead}), nil},
	} {
		err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			var have string
			err := tx.QueryRow(ctx, "SHOW transaction_isolation").Scan(&have)
			if have != level {
				t.Errorf("%s instead of %s", have, level)
			}
			return err
		}, opts...)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func smallPool(c *pgxpool.Config) { c.MaxConns = 1 }

// Handlers after the commit may begin transactions even if there is one
// connection for all: that of the first is given back.
func TestConnectionIsGivenBackBeforeTheAnnouncement(t *testing.T) {
	w := newWorldAt(t, testkit.PG15, Config{}, smallPool)
	var within notes
	again(w, &within)
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order(1)) })
	within.want(t, "mail.sent")
	equal(t, w.loggedKeys(), "order.placed 1", "mail.sent 1")
}
