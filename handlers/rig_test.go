package handlers_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

type placed struct {
	ID    string `json:"id"`
	Cents int    `json:"cents"`
}

func (placed) EventType() string     { return "order.placed" }
func (placed) SchemaVersion() int    { return 2 }
func (p placed) AggregateID() string { return p.ID }

type paid struct {
	ID string `json:"id"`
}

func (paid) EventType() string     { return "order.paid" }
func (paid) SchemaVersion() int    { return 1 }
func (p paid) AggregateID() string { return p.ID }

const soon = 20 * time.Second

var quick = handlers.RetryConfig{MaxAttempts: 3, Initial: time.Millisecond, MaxInterval: 2 * time.Millisecond}

// rig is a database with an inbox and a table of effects, and a broker.
type rig struct {
	t      *testing.T
	pool   *pgxpool.Pool // the owner's, for what the test itself does
	own    *pgxpool.Pool // the consumer's, with no privileges but those that it needs
	schema string
	broker *broker

	mu      sync.Mutex
	results []handlers.HandlerResult
}

func newRig(t *testing.T, options ...func(*pgxpool.Config)) *rig {
	t.Helper()
	return rigAt(t, testkit.Postgres(t, testkit.PG15, options...), testkit.Schema(t))
}

func rigAt(t *testing.T, pool *pgxpool.Pool, schema string) *rig {
	t.Helper()
	if err := migrations.Up(t.Context(), pool, schema); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, pool: pool, schema: schema, broker: newBroker(4)}
	r.exec("CREATE TABLE IF NOT EXISTS " + r.effects() + " (handler text, event_id uuid)")
	testkit.Grant(t, pool, schema)
	testkit.GrantAll(t, pool, r.effects())
	r.own = testkit.As(t, pool, testkit.Consumer)
	return r
}

func (r *rig) effects() string { return pgx.Identifier{r.schema, "effects"}.Sanitize() }

func (r *rig) exec(sql string, args ...any) {
	r.t.Helper()
	if _, err := r.pool.Exec(r.t.Context(), sql, args...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) count(sql string, args ...any) (n int) {
	r.t.Helper()
	if err := r.pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

func (r *rig) effectsOf(handler string) int {
	return r.count("SELECT count(*) FROM "+r.effects()+" WHERE handler = $1", handler)
}

// state of an event in the inbox, "" for none.
func (r *rig) state(handler string, id uuid.UUID) (state string) {
	r.t.Helper()
	err := r.pool.QueryRow(context.Background(),
		"SELECT coalesce(max(state), '') FROM "+pgx.Identifier{r.schema, "inbox"}.Sanitize()+" WHERE handler = $1 AND event_id = $2",
		handler, id).Scan(&state)
	if err != nil {
		r.t.Fatal(err)
	}
	return state
}

func (r *rig) config() handlers.Config {
	return handlers.Config{
		Pool: r.own, Schema: r.schema,
		Retry:    quick,
		Poison:   handlers.PoisonConfig{Publisher: r.broker},
		SlowNack: handlers.SlowNackConfig{Initial: time.Millisecond, Max: 20 * time.Millisecond},
		Logger:   slog.New(slog.NewTextHandler(io.Discard, nil)),
		OnResult: func(result handlers.HandlerResult) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.results = append(r.results, result)
		},
	}
}

func (r *rig) router(change ...func(*handlers.Config)) *handlers.Router {
	r.t.Helper()
	cfg := r.config()
	for _, f := range change {
		f(&cfg)
	}
	router, err := handlers.NewRouter(r.broker, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return router
}

// run runs a router until the test, or stop, ends it; a bad end fails the test.
func (r *rig) run(router *handlers.Router) (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- router.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					r.t.Errorf("Run: %v", err)
				}
			case <-time.After(time.Minute):
				r.t.Error("Run does not return")
			}
		})
	}
	r.t.Cleanup(stop)
	return stop
}

// outcomes are the results so far of an event in a handler.
func (r *rig) outcomes(handler string, id uuid.UUID) (found []handlers.Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, result := range r.results {
		if result.Handler == handler && (id == uuid.Nil || result.EventID == id) {
			found = append(found, result.Outcome)
		}
	}
	return found
}

func (r *rig) last(handler string) (result handlers.HandlerResult) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.results {
		if one.Handler == handler {
			result = one
		}
	}
	return result
}

// await waits for an outcome of an event in a handler.
func (r *rig) await(handler string, id uuid.UUID, want handlers.Outcome) {
	r.t.Helper()
	testkit.Eventually(r.t, soon, func() bool {
		for _, o := range r.outcomes(handler, id) {
			if o == want {
				return true
			}
		}
		return false
	}, "event %s is %s by %s", id, want, handler)
}

// messageOf is the message of an event, as a relay publishes it.
func messageOf(t testing.TB, p events.Payload) *message.Message {
	t.Helper()
	e, err := events.New(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	document, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	msg := message.NewMessage(e.EventID.String(), document)
	msg.Metadata[events.HeaderEventType] = e.EventType
	msg.Metadata[events.HeaderSchemaVersion] = strconv.Itoa(e.SchemaVersion)
	msg.Metadata[events.HeaderPartitionKey] = e.Key()
	msg.Metadata[events.HeaderContentType] = events.ContentTypeJSON
	return msg
}

func (r *rig) publish(p events.Payload) uuid.UUID {
	r.t.Helper()
	msg := messageOf(r.t, p)
	r.send(msg)
	return uuid.MustParse(msg.UUID)
}

func (r *rig) send(msgs ...*message.Message) {
	r.t.Helper()
	if err := r.broker.Publish("order", msgs...); err != nil {
		r.t.Fatal(err)
	}
}

// book is a HandleTx handler with one effect.
func (r *rig) book(name string) func(context.Context, pgx.Tx, events.Event[placed]) error {
	return func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		_, err := tx.Exec(ctx, "INSERT INTO "+r.effects()+" VALUES ($1, $2::uuid)", name, e.EventID)
		return err
	}
}

func order(n int) placed { return placed{ID: fmt.Sprintf("order-%d", n), Cents: n} }
