package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

func TestMain(m *testing.M) { testkit.Main(m) }

type orderPlaced struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

func (orderPlaced) EventType() string     { return "order.placed" }
func (orderPlaced) SchemaVersion() int    { return 2 }
func (e orderPlaced) AggregateID() string { return e.OrderID }

type stockReserved struct {
	OrderID string `json:"order_id"`
}

func (stockReserved) EventType() string     { return "stock.reserved" }
func (stockReserved) SchemaVersion() int    { return 1 }
func (e stockReserved) AggregateID() string { return e.OrderID }

type mailSent struct {
	OrderID string `json:"order_id"`
}

func (mailSent) EventType() string     { return "mail.sent" }
func (mailSent) SchemaVersion() int    { return 1 }
func (e mailSent) AggregateID() string { return e.OrderID }

// world is a bus on a log of the test's own, and a table for its handlers.
type world struct {
	t      *testing.T
	pool   *pgxpool.Pool // the application's, with no privileges but those that it needs
	owner  *pgxpool.Pool // for what the test itself does
	schema string
	log    *watchedLog
	bus    *EventBus
	hook   *hook
}

func newWorld(t *testing.T) *world { return newWorldAt(t, testkit.PG15, Config{}) }

func newWorldAt(t *testing.T, server testkit.Server, cfg Config, options ...func(*pgxpool.Config)) *world {
	t.Helper()
	w := &world{t: t, schema: testkit.Schema(t, server), hook: &hook{}}
	w.owner = testkit.Postgres(t, server, options...)
	if err := migrations.Up(t.Context(), w.owner, w.schema); err != nil {
		t.Fatal(err)
	}
	testkit.Grant(t, w.owner, w.schema)
	w.pool = testkit.As(t, w.owner, testkit.App)
	log, err := outbox.NewLog(outbox.LogConfig{Schema: w.schema})
	if err != nil {
		t.Fatal(err)
	}
	w.log = &watchedLog{Log: log}
	if cfg.OnAfterCommitError == nil {
		cfg.OnAfterCommitError = w.hook.told
	}
	if w.bus, err = newBus(w.log, cfg); err != nil {
		t.Fatal(err)
	}
	w.exec("CREATE TABLE " + w.table() + " (id text PRIMARY KEY, n int NOT NULL DEFAULT 0)")
	testkit.GrantAll(t, w.owner, w.table())
	return w
}

func (w *world) table() string { return w.schema + ".effects" }

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.owner.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) effects() []string {
	w.t.Helper()
	return query[string](w, "SELECT id FROM "+w.table()+" ORDER BY id")
}

// logged are the events in the log, in its order.
func (w *world) logged() []events.DomainEvent {
	w.t.Helper()
	var found []events.DomainEvent
	for _, document := range query[[]byte](w, "SELECT payload FROM "+w.schema+".outbox ORDER BY id") {
		e, err := events.Decode(document)
		if err != nil {
			w.t.Fatal(err)
		}
		found = append(found, e)
	}
	return found
}

func (w *world) loggedKeys() []string {
	w.t.Helper()
	var keys []string
	for _, e := range w.logged() {
		keys = append(keys, e.EventType+" "+e.AggregateID)
	}
	return keys
}

func query[T any](w *world, sql string) []T {
	w.t.Helper()
	rows, err := w.owner.Query(context.Background(), sql)
	if err != nil {
		w.t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// inTx is InTx for those who expect it to work.
func (w *world) inTx(fn func(ctx context.Context, tx pgx.Tx) error) {
	w.t.Helper()
	if err := InTx(w.t.Context(), w.pool, fn); err != nil {
		w.t.Fatal(err)
	}
}

// announced subscribes to orderPlaced after commit and notes what comes.
func (w *world) announced() *notes {
	n := &notes{}
	SubscribeAfterCommit(w.bus, func(_ context.Context, e events.Event[orderPlaced]) error {
		n.add(e.Data.OrderID)
		return nil
	})
	return n
}

// watchedLog counts what a bus does with a log.
type watchedLog struct {
	*outbox.Log
	appends, wakes, hints atomic.Int64
}

func (l *watchedLog) Append(ctx context.Context, tx pgx.Tx, evs ...events.DomainEvent) error {
	l.appends.Add(1)
	return l.Log.Append(ctx, tx, evs...)
}

func (l *watchedLog) Wake() { l.wakes.Add(1); l.Log.Wake() }
func (l *watchedLog) Hint() { l.hints.Add(1); l.Log.Hint() }

// hook is a Config.OnAfterCommitError.
type hook struct {
	mu   sync.Mutex
	errs []*HandlerError
}

func (h *hook) told(_ context.Context, err *HandlerError) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errs = append(h.errs, err)
}

// notes are strings from any goroutine.
type notes struct {
	mu   sync.Mutex
	list []string
}

func (n *notes) add(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, s)
}

func (n *notes) want(t *testing.T, want ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	equal(t, n.list, want...)
}

func equal(t *testing.T, have []string, want ...string) {
	t.Helper()
	if !slices.Equal(have, want) {
		t.Fatalf("have %q, want %q", have, want)
	}
}

// says fails unless err wraps the target and its text has all the parts.
func says(t *testing.T, err, target error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if target != nil && !errors.Is(err, target) {
		t.Fatalf("error %q does not wrap %q", err, target)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Fatalf("error %q does not say %q", err, p)
		}
	}
}

func ids(evs []events.DomainEvent) []uuid.UUID {
	var found []uuid.UUID
	for _, e := range evs {
		found = append(found, e.EventID)
	}
	return found
}

func order(id any) orderPlaced { return orderPlaced{OrderID: fmt.Sprint(id), Cents: 100} }

// insert is a handler that leaves an effect in the transaction.
func (w *world) insert(ctx context.Context, tx pgx.Tx, id string) error {
	_, err := tx.Exec(ctx, "INSERT INTO "+w.table()+" (id) VALUES ($1)", id)
	return err
}
