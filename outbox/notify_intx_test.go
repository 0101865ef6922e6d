package outbox_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

type ordered struct {
	ID string `json:"id"`
}

func (ordered) EventType() string     { return "order.placed" }
func (ordered) SchemaVersion() int    { return 1 }
func (o ordered) AggregateID() string { return o.ID }

// wire sees every statement and the state of its connection before it.
type wire struct {
	mu         sync.Mutex
	inTx, idle int // notifications inside and outside of a transaction
	appends    int
}

func (w *wire) TraceQueryStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch sql := strings.ToLower(d.SQL); {
	case strings.HasPrefix(sql, "insert into"):
		w.appends++
	case !strings.Contains(sql, "notify"):
	case conn.PgConn().TxStatus() == 'I':
		w.idle++
	default:
		w.inTx++
	}
	return ctx
}

func (w *wire) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// What the bus commits is told of outside of its transactions, also where both use
// one pool.
func TestNoNotifyInsideATransactionThatPublishes(t *testing.T) {
	t.Parallel()
	var seen wire
	pool := testkit.Postgres(t, testkit.PG15, func(c *pgxpool.Config) { c.ConnConfig.Tracer = &seen })
	schema := testkit.Schema(t)
	if err := migrations.Up(t.Context(), testkit.Postgres(t, testkit.PG15), schema); err != nil {
		t.Fatal(err)
	}
	log, err := outbox.NewLog(outbox.LogConfig{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	eventBus, err := bus.New(log, bus.Config{})
	if err != nil {
		t.Fatal(err)
	}
	notifier, err := outbox.NewNotifier(pool, outbox.NotifierConfig{Schema: schema, Every: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- notifier.Run(ctx) }()

	testkit.Eventually(t, 20*time.Second, func() bool {
		err := bus.InTx(t.Context(), pool, func(ctx context.Context, tx pgx.Tx) error {
			return eventBus.Publish(ctx, tx, ordered{"1"})
		})
		if err != nil {
			t.Fatal(err)
		}
		seen.mu.Lock()
		defer seen.mu.Unlock()
		return seen.appends >= 20 && seen.idle >= 5
	}, "20 events are committed, and 5 notifications sent")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if seen.inTx > 0 {
		t.Errorf("%d notifications inside of a transaction", seen.inTx)
	}
}
