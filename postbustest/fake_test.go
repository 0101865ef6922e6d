package postbustest_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
	"github.com/postbus/postbus/postbustest"
)

func TestMain(m *testing.M) { testkit.Main(m) }

type OrderPlaced struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

func (OrderPlaced) EventType() string     { return "order.placed" }
func (OrderPlaced) SchemaVersion() int    { return 1 }
func (e OrderPlaced) AggregateID() string { return e.OrderID }

type OrderCancelled struct {
	OrderID string `json:"order_id"`
}

func (OrderCancelled) EventType() string     { return "order.cancelled" }
func (OrderCancelled) SchemaVersion() int    { return 1 }
func (e OrderCancelled) AggregateID() string { return e.OrderID }

// verdict is a test that a helper may fail. Its cleanups are run by end.
type verdict struct {
	testing.TB
	mu       sync.Mutex
	failed   []string
	logged   []string
	cleanups []func()
}

func (v *verdict) Helper() {}
func (v *verdict) Fatalf(format string, args ...any) {
	v.Errorf(format, args...)
	runtime.Goexit()
}
func (v *verdict) Fatal(args ...any) { v.Fatalf("%s", fmt.Sprint(args...)) }
func (v *verdict) Errorf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failed = append(v.failed, fmt.Sprintf(format, args...))
}
func (v *verdict) Logf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.logged = append(v.logged, fmt.Sprintf(format, args...))
}
func (v *verdict) Cleanup(f func()) { v.cleanups = append(v.cleanups, f) }
func (v *verdict) end() {
	for len(v.cleanups) > 0 {
		last := len(v.cleanups) - 1
		f := v.cleanups[last]
		v.cleanups = v.cleanups[:last]
		f()
	}
}

// mustFail runs a helper that has to fail its test once, with all of parts in the text.
func mustFail(t *testing.T, helper func(t testing.TB), parts ...string) *verdict {
	t.Helper()
	v := &verdict{TB: t}
	over := make(chan struct{})
	go func() { // Goexit ends it
		defer close(over)
		defer v.end()
		helper(v)
	}()
	<-over
	if len(v.failed) != 1 {
		t.Fatalf("the helper failed its test %d times, want once: %q", len(v.failed), v.failed)
	}
	for _, p := range parts {
		if !strings.Contains(v.failed[0], p) {
			t.Errorf("the failure does not say %q: %s", p, v.failed[0])
		}
	}
	return v
}

// world is a schema with a log.
type world struct {
	pool   *pgxpool.Pool
	schema string
	log    *outbox.Log
}

func newWorld(t testing.TB, which testkit.Server) *world {
	t.Helper()
	w := &world{pool: testkit.Postgres(t, which)}
	w.schema = postbustest.Schema(t, w.pool)
	var err error
	if w.log, err = outbox.NewLog(outbox.LogConfig{Schema: w.schema}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) append(ctx context.Context, t testing.TB, tx pgx.Tx, payloads ...events.Payload) {
	t.Helper()
	for _, p := range payloads {
		e, err := events.New(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.log.Append(ctx, tx, e); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) begin(t testing.TB) pgx.Tx {
	t.Helper()
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback(context.Background()) })
	return tx
}

func (w *world) commit(t testing.TB, payloads ...events.Payload) {
	t.Helper()
	tx := w.begin(t)
	w.append(t.Context(), t, tx, payloads...)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}
