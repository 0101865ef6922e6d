package bus

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

type durableWorld struct {
	t    *testing.T
	pool *pgxpool.Pool
	log  *outbox.Log
	bus  *EventBus
	tab  string
}

func newDurableWorld(t *testing.T, cfg Config) *durableWorld {
	t.Helper()
	w := &durableWorld{t: t, pool: testkit.Postgres(t, testkit.PG15)}
	schema := testkit.Schema(t)
	if err := migrations.Up(t.Context(), w.pool, schema); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.log, err = outbox.NewLog(outbox.LogConfig{Schema: schema}); err != nil {
		t.Fatal(err)
	}
	cfg.Pool = w.pool
	cfg.Durable.PollInterval = 50 * time.Millisecond
	cfg.Durable.Retry = outbox.RetryConfig{Initial: time.Millisecond, Max: 20 * time.Millisecond, MaxAttempts: 3}
	if w.bus, err = New(w.log, cfg); err != nil {
		t.Fatal(err)
	}
	w.tab = schema + ".effects"
	if _, err := w.pool.Exec(t.Context(), `CREATE TABLE `+w.tab+` (seq bigint GENERATED ALWAYS AS IDENTITY, what text)`); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *durableWorld) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.bus.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		done <- nil
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *durableWorld) publish(evs ...events.Payload) {
	w.t.Helper()
	err := InTx(w.t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, evs...) })
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *durableWorld) note(ctx context.Context, tx pgx.Tx, what string) error {
	_, err := tx.Exec(ctx, `INSERT INTO `+w.tab+` (what) VALUES ($1)`, what)
	return err
}

func (w *durableWorld) noted() string {
	w.t.Helper()
	var all string
	if err := w.pool.QueryRow(context.Background(), `SELECT coalesce(string_agg(what, ' ' ORDER BY seq), '') FROM `+w.tab).Scan(&all); err != nil {
		w.t.Fatal(err)
	}
	return all
}

func (w *durableWorld) waitFor(want string) {
	w.t.Helper()
	testkit.Eventually(w.t, 10*time.Second, func() bool { return w.noted() == want }, "the effects are "+want)
}

// A durable handler gets what is in the log, from where it is told to begin; what it
// publishes is announced and handled in turn, with correlation and causation.
func TestDurableHandler(t *testing.T) {
	t.Parallel()
	w := newDurableWorld(t, Config{})
	w.publish(orderPlaced{OrderID: "1"})
	SubscribeDurable(w.bus, "ledger", FromBeginning, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		if err := w.bus.Publish(ctx, tx, mailSent{OrderID: e.Data.OrderID}); err != nil {
			return err
		}
		return w.note(ctx, tx, "placed:"+e.Data.OrderID)
	})
	var caused, announced atomic.Value
	SubscribeDurableTo(w.bus, "audit", FromBeginning, "*", func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error {
		if e.EventType == (mailSent{}).EventType() {
			caused.Store(e.CausationID)
		}
		return nil
	}, Batch(10))
	SubscribeAfterCommit(w.bus, func(ctx context.Context, e events.Event[mailSent]) error {
		announced.Store(e.Data.OrderID)
		return nil
	})
	stop := w.run()
	w.waitFor("placed:1")
	w.publish(orderPlaced{OrderID: "2"})
	w.waitFor("placed:1 placed:2")
	testkit.Eventually(t, 10*time.Second, func() bool {
		id, _ := caused.Load().(string)
		return announced.Load() == "2" && uuid.Validate(id) == nil
	}, "what it published is announced, and handled by the other one")
	stop()
	w.publish(orderPlaced{OrderID: "3"})
	w.run()
	w.waitFor("placed:1 placed:2 placed:3")
}

// What cannot be handled does not stop what can: a newer version is held, an older one
// and a panic are given up.
func TestDurableHandlerVersionsAndFaults(t *testing.T) {
	t.Parallel()
	w := newDurableWorld(t, Config{})
	raw := func(version int, id string) events.Payload {
		return events.Raw(events.DomainEvent{EventType: "order.placed", SchemaVersion: version, AggregateID: id, Data: []byte(`{"order_id":"` + id + `"}`)})
	}
	version := (orderPlaced{}).SchemaVersion()
	SubscribeDurable(w.bus, "ledger", FromNow, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		switch e.AggregateID {
		case "panics":
			panic("no")
		case "refused":
			return Permanent(errors.New("never"))
		case "commits":
			if err := w.note(ctx, tx, "never"); err != nil {
				return err
			}
			return tx.Commit(ctx)
		}
		return w.note(ctx, tx, e.AggregateID)
	})
	w.run()
	desk, err := outbox.NewDesk(w.pool, "ledger", outbox.DeskConfig{Schema: w.log.Schema()})
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool {
		var n int
		return w.pool.QueryRow(t.Context(), `SELECT count(*) FROM `+w.log.Schema()+`.relay_link`).Scan(&n) == nil && n > 0
	}, "it has begun")
	w.publish(raw(version+1, "future"), raw(version, "panics"), raw(version, "refused"), raw(version, "commits"), raw(version, "healthy"))
	w.waitFor("healthy")
	testkit.Eventually(t, 10*time.Second, func() bool {
		all, err := desk.Parked(t.Context(), outbox.ParkedFilter{}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		seen := ""
		for _, e := range all {
			seen += e.Key + ":" + string(e.State) + " "
		}
		return seen == "future:retrying panics:given_up refused:given_up commits:given_up "
	}, "each is where it belongs")
	if got := w.noted(); got != "healthy" {
		t.Errorf("effects: %s", got)
	}
}

func TestDurableWiring(t *testing.T) {
	t.Parallel()
	w := newDurableWorld(t, Config{})
	h := func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { return nil }
	refused := func(want string, wire func()) {
		t.Helper()
		defer func() {
			t.Helper()
			err, _ := recover().(error)
			if !errors.Is(err, ErrWiring) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want a WiringError with %q", err, want)
			}
		}()
		wire()
	}
	if err := w.bus.Run(t.Context()); !errors.Is(err, ErrNoDurables) {
		t.Errorf("Run without durable handlers: %v", err)
	}
	SubscribeDurable(w.bus, "one", FromNow, h)
	refused(`named "one" already`, func() { SubscribeDurable(w.bus, "one", FromNow, h) })
	refused("DurableConfig.Name", func() { SubscribeDurable(w.bus, "No Name", FromNow, h) })
	refused("DurableConfig.Batch", func() { SubscribeDurable(w.bus, "two", FromNow, h, Batch(-1)) })
	refused("the handler is nil", func() { SubscribeDurable[orderPlaced](w.bus, "two", FromNow, nil) })
	refused("pattern", func() {
		SubscribeDurableTo(w.bus, "two", FromNow, "order.*.x", func(context.Context, pgx.Tx, events.DomainEvent) error { return nil })
	})
	bare, err := New(w.log, Config{})
	if err != nil {
		t.Fatal(err)
	}
	refused("Config.Pool", func() { SubscribeDurable(bare, "one", FromNow, h) })
	stop := w.run()
	testkit.Eventually(t, 10*time.Second, func() bool {
		w.bus.subscribing.Lock()
		defer w.bus.subscribing.Unlock()
		return w.bus.running
	}, "it runs")
	if err := w.bus.Run(t.Context()); !errors.Is(err, outbox.ErrAlreadyRunning) {
		t.Errorf("a second Run: %v", err)
	}
	refused("the bus is running", func() { SubscribeDurable(w.bus, "late", FromNow, h) })
	stop()
	if got := w.bus.Subscriptions()[0]; got.Kind != KindDurable || got.Name != "one" || got.String() == "" {
		t.Errorf("listed as %+v", got)
	}
}

func TestDurableCancel(t *testing.T) {
	t.Parallel()
	w := newDurableWorld(t, Config{})
	subscribe := func(name string) *Subscription {
		return SubscribeDurable(w.bus, name, FromBeginning, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
			return w.note(ctx, tx, name+e.Data.OrderID)
		})
	}
	a, b := subscribe("a"), subscribe("b")
	b.Cancel()
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { done <- w.bus.Run(ctx) }()
	w.publish(orderPlaced{OrderID: "1"})
	w.waitFor("a1")
	a.Cancel()
	if err := <-done; err != nil { // with the last one Run ends
		t.Error(err)
	}
}
