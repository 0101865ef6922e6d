package postbustest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
	"github.com/postbus/postbus/postbustest"
)

func TestRunToEndPublishesAll(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, which)
			var b postbustest.Broker
			cfg := outbox.RelayConfig{Schema: w.schema}
			run := func() {
				t.Helper()
				if parked := postbustest.RunToEnd(t, w.pool, &b, cfg); len(parked) != 0 {
					t.Errorf("parked: %+v", parked)
				}
			}
			run() // of an empty log
			for i := range 20 {
				w.commit(t, OrderPlaced{OrderID: fmt.Sprint("o-", i%3), Cents: int64(i)})
			}
			run()
			postbustest.RequirePublished[OrderPlaced](t, &b, postbustest.Times(20))

			// One that is committed later, with ids below those that have passed.
			open := w.begin(t)
			w.append(t.Context(), t, open, OrderPlaced{OrderID: "late"})
			w.commit(t, OrderCancelled{OrderID: "o-1"})
			run()
			postbustest.RequirePublished[OrderCancelled](t, &b, postbustest.Times(1))
			postbustest.RequirePublished[OrderPlaced](t, &b, postbustest.Times(20))
			if err := open.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			run()
			postbustest.RequirePublished[OrderPlaced](t, &b, postbustest.Times(1), postbustest.WithKey("late"))

			cfg.Name, cfg.StartAt = "second", outbox.FromNow
			run()
			w.commit(t, OrderPlaced{OrderID: "for both"})
			run()
			postbustest.RequirePublished[OrderPlaced](t, &b, postbustest.Times(1), postbustest.WithKey("for both"))
			if n := len(b.Messages()); n != 23 {
				t.Errorf("%d messages, want 23", n)
			}
		})
	}
}

func TestRunToEndWithAStockPublisher(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testkit.PG15)
	w.commit(t, OrderPlaced{OrderID: "o-1"}, OrderCancelled{OrderID: "o-1"})
	var b postbustest.Broker
	b.On(t, postbustest.When{Nth: 1}, postbustest.LoseAnswer())
	postbustest.RunToEnd(t, w.pool, b.Stock(), outbox.RelayConfig{Schema: w.schema})
	if got := b.Messages(); len(got) != 3 || got[0].EventID != got[1].EventID || got[2].EventType != "order.cancelled" {
		t.Errorf("got %+v", got)
	}
}

// Passing faults are outlived; what is given up is parked with what waits behind it.
func TestRunToEndOutlivesFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testkit.PG15)
	var b postbustest.Broker
	b.On(t, postbustest.When{Key: "passing", First: 6}, postbustest.Refuse(nil)) // more than the tries before it is parked
	b.On(t, postbustest.When{Key: "unknown", Nth: 1}, postbustest.LoseAnswer())
	poison := b.On(t, postbustest.When{Key: "poison"}, postbustest.RefuseForGood(errors.New("no such topic")))
	for _, key := range []string{"passing", "unknown", "poison", "fine"} {
		w.commit(t, OrderPlaced{OrderID: key})
		w.commit(t, OrderCancelled{OrderID: key})
	}
	cfg := outbox.RelayConfig{Schema: w.schema}
	parked := postbustest.RunToEnd(t, w.pool, &b, cfg)
	if len(parked) != 2 || parked[0].State != outbox.ParkedGivenUp || parked[1].State != outbox.ParkedWaiting ||
		parked[0].Key != "poison" || !strings.Contains(parked[0].LastError, "no such topic") {
		t.Errorf("parked: %+v", parked)
	}
	postbustest.RequirePublished[OrderCancelled](t, &b, postbustest.Times(3))
	postbustest.RequirePublished[OrderPlaced](t, &b, postbustest.WithKey("unknown"), postbustest.Times(2))
	postbustest.RequirePublished[OrderPlaced](t, &b, postbustest.WithKey("passing"), postbustest.Times(1))

	// A replay is part of what has to be done.
	poison.Stop()
	desk, err := outbox.NewDesk(w.pool, "test", outbox.DeskConfig{Schema: w.schema})
	if err != nil {
		t.Fatal(err)
	}
	if err := desk.Replay(t.Context(), parked[0].LogID); err != nil {
		t.Fatal(err)
	}
	hung := b.On(t, postbustest.When{Key: "poison", Type: "order.cancelled"}, postbustest.Hang())
	mustFail(t, func(t testing.TB) {
		postbustest.RunToEnd(t, w.pool, &b, outbox.RelayConfig{Schema: w.schema, DrainTimeout: 10 * time.Millisecond}, postbustest.Within(3*time.Second))
	}, ": waiting", `order.cancelled  key "poison"`)
	hung.Stop()
	if parked := postbustest.RunToEnd(t, w.pool, &b, cfg); len(parked) != 0 {
		t.Errorf("parked: %+v", parked)
	}
	postbustest.RequirePublished[OrderCancelled](t, &b, postbustest.WithKey("poison"))
}

// Under SkipKey nothing waits behind what was given up, and what a person discards
// is on the desk no more.
func TestRunToEndSkipsKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testkit.PG15)
	var b postbustest.Broker
	b.On(t, postbustest.When{Type: "order.placed"}, postbustest.RefuseForGood(nil))
	w.commit(t, OrderPlaced{OrderID: "o-1"}, OrderCancelled{OrderID: "o-1"})
	w.commit(t, OrderCancelled{OrderID: "o-2"})
	cfg := outbox.RelayConfig{Schema: w.schema, Policy: outbox.SkipKey}
	parked := postbustest.RunToEnd(t, w.pool, &b, cfg)
	if len(parked) != 1 || parked[0].State != outbox.ParkedGivenUp {
		t.Fatalf("parked: %+v", parked)
	}
	postbustest.RequirePublished[OrderCancelled](t, &b, postbustest.Times(2))
	desk, err := outbox.NewDesk(w.pool, "test", outbox.DeskConfig{Schema: w.schema})
	if err != nil {
		t.Fatal(err)
	}
	if err := desk.Discard(t.Context(), parked[0].LogID); err != nil {
		t.Fatal(err)
	}
	if parked := postbustest.RunToEnd(t, w.pool, &b, cfg); len(parked) != 0 {
		t.Errorf("parked: %+v", parked)
	}
}

func TestRunToEndSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testkit.PG15)
	cfg := outbox.RelayConfig{Schema: w.schema, DrainTimeout: 10 * time.Millisecond}
	var b postbustest.Broker
	w.commit(t, OrderPlaced{OrderID: "settled before"})
	postbustest.RunToEnd(t, w.pool, &b, cfg)
	w.commit(t, OrderPlaced{OrderID: "o-1"})
	w.commit(t, OrderPlaced{OrderID: "o-2"})
	hung := b.On(t, postbustest.When{Key: "o-1"}, postbustest.Hang())
	v := mustFail(t, func(t testing.TB) {
		postbustest.RunToEnd(t, w.pool, &b, cfg, postbustest.Within(3*time.Second))
	}, "within 3s", "left are 2:", "event 2: not settled yet", `order.placed  key "o-1"`, "hangs")
	if !strings.Contains(strings.Join(v.logged, "\n"), "relay active") {
		t.Errorf("the test's log: %q", v.logged)
	}
	hung.Stop()

	b.On(t, postbustest.When{Key: "o-3"}, postbustest.Refuse(errors.New("not today")))
	w.commit(t, OrderPlaced{OrderID: "o-3"})
	w.commit(t, OrderPlaced{OrderID: "o-4"})
	cfg.Retry.MaxAttempts = 1_000_000
	mustFail(t, func(t testing.TB) {
		postbustest.RunToEnd(t, w.pool, &b, cfg, postbustest.Within(5*time.Second))
	}, "event 4: retrying", "attempts: not today", `key "o-3"`)

	// A relay that nobody lets go on.
	desk, err := outbox.NewDesk(w.pool, "test", outbox.DeskConfig{Schema: w.schema})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := desk.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustFail(t, func(t testing.TB) {
		postbustest.RunToEnd(t, w.pool, &b, cfg, postbustest.Within(time.Second))
	}, "event 4: retrying")
}

func TestRunToEndRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testkit.PG15)
	run := func(cfg outbox.RelayConfig) func(t testing.TB) {
		return func(t testing.TB) { postbustest.RunToEnd(t, w.pool, &postbustest.Broker{}, cfg) }
	}
	mustFail(t, run(outbox.RelayConfig{Schema: w.schema, Lanes: -1}), "RelayConfig.Lanes")
	mustFail(t, run(outbox.RelayConfig{Schema: "no_such_schema_here"}), "migrations.Up")
	full := testkit.Postgres(t, testkit.PG15, func(c *pgxpool.Config) { c.MaxConns = 1 })
	taken, err := full.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, func(t testing.TB) {
		postbustest.RunToEnd(t, full, &postbustest.Broker{}, outbox.RelayConfig{Schema: w.schema}, postbustest.Within(50*time.Millisecond))
	}, "1 of the pool's 1 connections")
	taken.Release()
	if _, err := w.pool.Exec(t.Context(), `ALTER SEQUENCE `+w.schema+`.outbox_id CACHE 5`); err != nil {
		t.Fatal(err)
	}
	w.commit(t, OrderPlaced{OrderID: "o-1"})
	mustFail(t, run(outbox.RelayConfig{Schema: w.schema}), "has ended before", "CACHE 1")
}

// What commits during the run is not waited for.
func TestRunToEndEndsWhileMoreIsCommitted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testkit.PG15)
	w.commit(t, OrderPlaced{OrderID: "o-1"})
	var b postbustest.Broker
	first := b.On(t, postbustest.When{Key: "o-1"}, postbustest.Hang())
	b.On(t, postbustest.When{Key: "more"}, postbustest.Hang())
	v, over := &verdict{TB: t}, make(chan struct{})
	go func() {
		defer close(over)
		postbustest.RunToEnd(v, w.pool, &b, outbox.RelayConfig{Schema: w.schema, DrainTimeout: 10 * time.Millisecond}, postbustest.Within(5*time.Second))
	}()
	first.WaitHits(t, 1)
	w.commit(t, OrderPlaced{OrderID: "more"})
	first.Stop()
	<-over
	if len(v.failed) > 0 {
		t.Error(v.failed)
	}
	postbustest.RequirePublished[OrderPlaced](t, &b, postbustest.Times(1), postbustest.WithKey("o-1"))
}

// Another relay of the name does the work: RunToEnd waits for it, and stands by.
func TestRunToEndBesideARunningRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testkit.PG15)
	var theirs, ours postbustest.Broker
	relay, err := outbox.NewRelay(w.pool, &theirs, outbox.RelayConfig{Name: "test", Schema: w.schema, PollInterval: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ran <- relay.Run(ctx) }()
	w.commit(t, OrderPlaced{OrderID: "o-1"})
	theirs.WaitFor(t, 1)
	w.commit(t, OrderPlaced{OrderID: "o-2"})
	postbustest.RunToEnd(t, w.pool, &ours, outbox.RelayConfig{Schema: w.schema})
	postbustest.RequirePublished[OrderPlaced](t, &theirs, postbustest.Times(2))
	postbustest.RequireNothingPublished(t, &ours)
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
