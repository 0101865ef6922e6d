package handlers_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

func TestHandleTxTakesEffectOnce(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]testkit.Server{"pg15": testkit.PG15, "pg18": testkit.PG18, "pgbouncer": testkit.PgBouncer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rigAt(t, testkit.Postgres(t, server), testkit.Schema(t, server))
			r.broker.parallel = 8
			router := r.router()
			handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
			const distinct, copies = 10, 6
			for i := range distinct {
				msg := messageOf(t, order(i))
				for range copies {
					r.send(msg)
				}
			}
			r.run(router)
			testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == distinct*copies }, "all is acked")
			if n := r.effectsOf("stock.reserve"); n != distinct {
				t.Errorf("%d effects of %d events", n, distinct)
			}
			if s := router.Stats(); s.Handled != distinct || s.Duplicates != distinct*(copies-1) {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// The unique insert of the second waits for the first: a key in progress
// elsewhere is no duplicate yet.
func TestDuplicateWaitsForTheFirst(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]bool{"first commits": false, "first rolls back": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			first, second := r.router(), r.router()
			inside, goOn := make(chan struct{}), make(chan struct{})
			var calls atomic.Int32
			handle := func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
				if err := r.book("stock.reserve")(ctx, tx, e); err != nil {
					return err
				}
				if calls.Add(1) > 1 {
					return nil
				}
				close(inside)
				<-goOn
				if fails {
					return handlers.Permanent(errors.New("no"))
				}
				return nil
			}
			// Two processes: each with a router, a connection and a copy of the message.
			handlers.HandleTx(first, "stock.reserve", handle)
			handlers.HandleTx(second, "stock.reserve", handle)
			msg := messageOf(t, order(1))
			id := uuid.MustParse(msg.UUID)
			r.send(msg)
			r.broker.failWith(func(topic string, _ *message.Message) error {
				if topic == "order.poison" {
					return errors.New("down") // the first one's rollback must not poison what the second handles
				}
				return nil
			})
			r.run(first)
			<-inside
			r.send(msg)
			r.run(second)
			testkit.Eventually(t, soon, func() bool {
				return r.count(`SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%inbox%'`, r.schema) > 0
			}, "the second waits in its insert")
			if calls.Load() != 1 {
				t.Error("the second has run beside the first")
			}
			close(goOn)
			testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 2 }, "both are acked")
			if n := r.effectsOf("stock.reserve"); n != 1 || r.state("stock.reserve", id) != "handled" {
				t.Errorf("%d effects, state %q", n, r.state("stock.reserve", id))
			}
			want := int32(1)
			if fails {
				want = 2
			}
			if calls.Load() != want {
				t.Errorf("%d calls, want %d", calls.Load(), want)
			}
			if len(r.broker.waiting("order.poison")) != 0 {
				t.Error("it is in the poison queue as well")
			}
		})
	}
}

func TestHandleRunsAgainOnlyUntilItSucceeds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	var calls atomic.Int32
	handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
		if calls.Add(1) < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	msg := messageOf(t, order(1))
	r.broker.parallel = 1
	r.send(msg, msg, msg)
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 3 }, "all are acked")
	if calls.Load() != 2 {
		t.Errorf("%d calls, want 2", calls.Load())
	}
	if s := r.state("mail.receipt", uuid.MustParse(msg.UUID)); s != "handled" {
		t.Errorf("state %q", s)
	}
}

func TestSettledHandlersDoNotRunAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	var receipts, slow atomic.Int32
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
		receipts.Add(1)
		return nil
	})
	handlers.Handle(router, "slow", func(context.Context, events.Event[placed]) error {
		if slow.Add(1) < 4 {
			return &handlers.PostponedError{Err: errors.New("the other side is in maintenance")}
		}
		return nil
	})
	r.publish(order(1))
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 1 }, "it is acked")
	if r.broker.nacked("order") != 3 || receipts.Load() != 1 || r.effectsOf("stock.reserve") != 1 {
		t.Errorf("%d nacks, %d receipts, %d effects", r.broker.nacked("order"), receipts.Load(), r.effectsOf("stock.reserve"))
	}
	if d := r.last("slow"); !d.Redelivered || d.Outcome != handlers.OutcomeHandled {
		t.Errorf("last result %+v", d)
	}
}

func TestEqualPayloadsAreTwoEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	r.publish(order(1))
	r.publish(order(1))
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 2 }, "both are acked")
	if n := r.effectsOf("stock.reserve"); n != 2 {
		t.Errorf("%d effects", n)
	}
}

func TestHandlerCannotEndTheTransaction(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(context.Context, pgx.Tx) error{
		"commit":                 func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) },
		"commit, error ignored":  func(ctx context.Context, tx pgx.Tx) error { _ = tx.Commit(ctx); return nil },
		"rollback, then success": func(ctx context.Context, tx pgx.Tx) error { _ = tx.Rollback(ctx); return nil },
		"failed statement, then success": func(ctx context.Context, tx pgx.Tx) error {
			_, _ = tx.Exec(ctx, "SELECT 1/0")
			return nil
		},
		"rows left open": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Query(ctx, "SELECT generate_series(1, 100000)")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			router := r.router()
			handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
				if err := r.book("stock.reserve")(ctx, tx, e); err != nil {
					return err
				}
				return end(ctx, tx)
			})
			id := r.publish(order(1))
			r.run(router)
			r.await("stock.reserve", id, handlers.OutcomePoisoned)
			if n := r.effectsOf("stock.reserve"); n != 0 {
				t.Errorf("%d effects of a handler that failed", n)
			}
			t.Log(r.last("stock.reserve").Err)
		})
	}
}

func TestSavepointsAreTheHandlersOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SELECT 1/0")
			return err
		})
		if err == nil {
			return errors.New("1/0 has worked")
		}
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return r.book("stock.reserve")(ctx, tx, e) })
	})
	id := r.publish(order(1))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomeHandled)
	if n := r.effectsOf("stock.reserve"); n != 1 {
		t.Errorf("%d effects", n)
	}
}

func TestVanishedConsumersTransactionIsEndedByTheServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router(func(c *handlers.Config) { c.IdleTimeout = 1234567 * 1e6 })
	setting := make(chan string, 1)
	handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		var s string
		err := tx.QueryRow(ctx, "SELECT setting FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'").Scan(&s)
		setting <- s
		return err
	})
	id := r.publish(order(1))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomeHandled)
	if got := <-setting; got != "1234567" {
		t.Errorf("idle_in_transaction_session_timeout is %s", got)
	}
	var after string
	if err := r.own.QueryRow(t.Context(), "SHOW idle_in_transaction_session_timeout").Scan(&after); err != nil || after != "0" {
		t.Errorf("outside of the transaction it is %s, %v", after, err)
	}
}
