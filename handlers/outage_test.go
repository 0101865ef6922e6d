package handlers_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

// proxied is a rig whose router reaches the database through a proxy.
func proxied(t *testing.T) (*rig, *testkit.Proxy, func(*handlers.Config)) {
	r := newRig(t)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	pool := testkit.As(t, testkit.Pool(t, proxy.URL()), testkit.Consumer)
	return r, proxy, func(c *handlers.Config) {
		c.Pool = pool
		c.InboxTimeout = 500 * time.Millisecond
		c.Retry.MaxAttempts = 2
	}
}

func TestDatabaseOutagePoisonsNothing(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*testkit.Proxy){
		"cut":     func(p *testkit.Proxy) { p.Refuse(); p.CutAll() },
		"stalled": func(p *testkit.Proxy) { p.Stall() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, proxy, through := proxied(t)
			router := r.router(through)
			var receipts atomic.Int32
			handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
			handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
				receipts.Add(1)
				return nil
			})
			r.run(router)
			r.publish(order(0))
			testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 1 }, "it works")
			fault(proxy)
			const n = 8
			for i := range n {
				r.publish(order(i + 1))
			}
			testkit.Eventually(t, soon, func() bool { return router.Stats().Postponed > 3*4 }, "all in flight are postponed repeatedly")
			if receipts.Load() != 1 {
				t.Error("a handler was called although nobody could tell whether it had been before")
			}
			proxy.Resume()
			testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == n+1 }, "all is acked")
			if e := r.effectsOf("stock.reserve"); e != n+1 || receipts.Load() != n+1 || len(r.broker.waiting("order.poison")) != 0 {
				t.Errorf("%d effects, %d receipts, %d poisoned", e, receipts.Load(), len(r.broker.waiting("order.poison")))
			}
		})
	}
}

// The handler fails because the database does: that is no attempt of its.
func TestConnectionLostUnderTheHandlerIsNoAttempt(t *testing.T) {
	t.Parallel()
	r, proxy, through := proxied(t)
	router := r.router(through)
	var calls atomic.Int32
	handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		if calls.Add(1) <= 4 { // twice the attempts it has
			proxy.CutAll()
		}
		return r.book("stock.reserve")(ctx, tx, e)
	})
	id := r.publish(order(1))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomeHandled)
	if last := r.last("stock.reserve"); last.Attempts != 1 || r.effectsOf("stock.reserve") != 1 {
		t.Errorf("%+v, %d effects", last, r.effectsOf("stock.reserve"))
	}
}

// An event whose statements crash their backend must not do so for ever.
func TestEventThatKeepsLosingItsConnectionIsPoisoned(t *testing.T) {
	t.Parallel()
	r, _, through := proxied(t)
	router := r.router(through)
	var calls atomic.Int32
	handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		calls.Add(1)
		r.exec("SELECT pg_terminate_backend($1)", tx.Conn().PgConn().PID())
		_, err := tx.Exec(ctx, "SELECT 1")
		return err
	})
	id := r.publish(order(1))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomePoisoned)
	if calls.Load() != 20 {
		t.Errorf("%d calls", calls.Load())
	}
}

// The commit happens, its answer is lost: the inbox decides.
func TestLostCommitReplyTakesEffectOnce(t *testing.T) {
	t.Parallel()
	r, proxy, through := proxied(t)
	router := r.router(through)
	var calls, lost atomic.Int32
	handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		calls.Add(1)
		return r.book("stock.reserve")(ctx, tx, e)
	})
	proxy.OnClientBytes(func(b []byte) testkit.Action {
		if bytes.Contains(b, []byte("commit\x00")) && lost.Add(1) == 1 {
			return testkit.LoseReply
		}
		return testkit.Forward
	})
	id := r.publish(order(1))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomeDuplicate)
	if calls.Load() != 1 || r.effectsOf("stock.reserve") != 1 || lost.Load() != 1 {
		t.Errorf("%d calls, %d effects, %d commits", calls.Load(), r.effectsOf("stock.reserve"), lost.Load())
	}
	if len(r.broker.waiting("order.poison")) != 0 {
		t.Error("it is poisoned")
	}
}

// A handler fails while the database is away: it is not poisoned before somebody
// can look into the inbox.
func TestNothingIsPoisonedWithoutTheInbox(t *testing.T) {
	t.Parallel()
	r, proxy, through := proxied(t)
	router := r.router(through)
	var once sync.Once
	handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
		once.Do(func() { proxy.Refuse(); proxy.CutAll() })
		return handlers.Permanent(fmt.Errorf("no"))
	})
	id := r.publish(order(1))
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return router.Stats().Postponed >= 5 }, "it is postponed")
	if len(r.broker.waiting("order.poison")) != 0 {
		t.Error("it is poisoned")
	}
	proxy.Resume()
	r.await("mail.receipt", id, handlers.OutcomePoisoned)
	r.broker.only(t, "order.poison")
}
