package outbox_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

// health answers whoever watches: 200, or 503 with a line per problem. It is no
// liveness probe: what it tells needs a person, and no restart of this process.
func health(pool *pgxpool.Pool, cfg outbox.CheckConfig) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		err := outbox.Check(ctx, pool, cfg)
		if err == nil {
			return // 200
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		problems := outbox.Problems(err)
		if problems == nil { // the database cannot be asked: no word on that to strangers
			slog.Error("cannot check the outbox", "error", err)
			fmt.Fprintln(w, "the outbox could not be checked")
		}
		for _, p := range problems {
			fmt.Fprintln(w, p.Relay, p.Kind) // p.Text says it all: to whom may see figures
		}
	}
}

// A health endpoint on a server of your own.
func ExampleCheck() {
	pool, schema, done := open()
	defer done()

	mux := http.NewServeMux()
	mux.Handle("GET /health/outbox", health(pool, outbox.CheckConfig{Schema: schema, Relays: []string{"kafka"}, Confirm: time.Millisecond}))

	answer := httptest.NewRecorder()
	mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/health/outbox", nil))
	fmt.Println(answer.Code)
	fmt.Print(answer.Body)
	// Output:
	// 503
	// kafka unknown
}

// Figures for a metrics exporter, or a status page.
func ExampleReadStats() {
	pool, schema, done := open()
	defer done()

	stats, err := outbox.ReadStats(context.Background(), pool, schema)
	if err != nil {
		log.Panic(err)
	}
	fmt.Println("last id:", stats.Log.LastID)
	for _, r := range stats.Relays {
		fmt.Println(r.Name, r.Kind, r.Backlog, r.OldestUnpublishedAge, r.Parked.GivenUp.Rows)
	}
	// Output: last id: 0
}

// open connects to the test's server, where an application would use
// pgxpool.New, in a schema that done drops.
func open() (pool *pgxpool.Pool, schema string, done func()) {
	t := &exampleT{}
	schema = testkit.Schema(t)
	pool = testkit.Postgres(t, testkit.PG15)
	if err := migrations.Up(context.Background(), pool, schema); err != nil {
		log.Panic(err)
	}
	return pool, schema, t.end
}

// exampleT lets an example use the kit of the tests.
type exampleT struct {
	testing.TB
	cleanups []func()
}

func (t *exampleT) Helper()                           {}
func (t *exampleT) Name() string                      { return "Example" }
func (t *exampleT) Failed() bool                      { return false }
func (t *exampleT) Cleanup(f func())                  { t.cleanups = append(t.cleanups, f) }
func (t *exampleT) Fatal(args ...any)                 { log.Panic(args...) }
func (t *exampleT) Fatalf(format string, args ...any) { log.Panicf(format, args...) }
func (t *exampleT) Error(args ...any)                 { log.Panic(args...) }
func (t *exampleT) Errorf(format string, args ...any) { log.Panicf(format, args...) }

func (t *exampleT) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}
