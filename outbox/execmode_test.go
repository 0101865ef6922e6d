package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// inMode points the fixture's pools at the server in another exec mode.
func (f *fixture) inMode(which testkit.Server, mode pgx.QueryExecMode, conns int32) {
	f.t.Helper()
	f.pool = testkit.Postgres(f.t, which, func(cfg *pgxpool.Config) {
		cfg.ConnConfig.DefaultQueryExecMode = mode
		cfg.MaxConns = conns
	})
}

// An application and a relay, started and stopped, with an event that fails, is
// replayed by the desk and another discarded, and the statistics read meanwhile.
func TestRelayRunsInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, mode := range execModes(which) {
			t.Run(fmt.Sprintf("%s/%s", which, mode), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, which)
				f.inMode(which, mode, 4)
				s := newSink()
				s.setRule(func(m *Message, n int) Result {
					if strings.HasPrefix(m.Key, "bad") {
						return Result{Permanent, errRefused}
					}
					return Result{Status: Done}
				})
				stop := f.start(s, f.config())
				f.tx(func(tx pgx.Tx) error {
					return f.log.Append(t.Context(), tx, event("many", 1), event("many", 2), event("many", 3))
				})
				f.add("k", 1, 3)
				f.add("bad-1", 1, 2)
				f.add("bad-2", 1, 1)
				eventually(t, func() bool {
					return s.distinct() == 6 && len(f.parkedStates("bad-1")) == 2 && len(f.parkedStates("bad-2")) == 1
				}, "sent or parked")
				if _, err := ReadStats(t.Context(), f.as(testkit.Admin), f.schema); err != nil {
					t.Error(err)
				}
				s.setRule(nil)
				if err := f.desk().Replay(t.Context(), f.parkedID("bad-1", 1)); err != nil {
					t.Error(err)
				}
				if err := f.desk().Discard(t.Context(), f.parkedID("bad-2", 1)); err != nil {
					t.Error(err)
				}
				eventually(t, func() bool { return s.distinct() == 8 }, "replayed")
				if err := stop(); err != nil {
					t.Error(err)
				}
				f.start(s, f.config())
				f.add("k", 4, 2)
				eventually(t, func() bool { return s.distinct() == 10 }, "the next holder goes on")
				s.inOrder(t, "k", 5)
				s.inOrder(t, "many", 3)
				s.inOrder(t, "bad-1", 2)
			})
		}
	}
}

// A durable handler in every mode, with an event that fails once and is put aside.
func TestDurableHandlerRunsInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, mode := range execModes(which) {
			t.Run(fmt.Sprintf("%s/%s", which, mode), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, which)
				e := f.effectsTable()
				f.inMode(which, mode, 4)
				var failed atomic.Bool
				handle := func(ctx context.Context, tx *Tx, m *Message) error {
					if err := e.book(ctx, tx, m); err != nil || m.Key == "k1" && failed.CompareAndSwap(false, true) {
						return errors.Join(err, errRefused)
					}
					return nil
				}
				stop := f.durable(handle, f.durableConfig("ledger"))
				f.backlog(5, names("k", 3)...)
				e.reaches(15)
				if err := stop(); err != nil {
					t.Error(err)
				}
				f.durable(handle, f.durableConfig("ledger"))
				f.add("k0", 6, 1)
				e.reaches(16)
				e.expect("k0", 1, 2, 3, 4, 5, 6)
				e.expectUpTo(5, "k1", "k2")
			})
		}
	}
}

// Behind a pooler that keeps no prepared statements: the mode that would go wrong
// unnoticed is refused at the start, the one that fails says so and stops.
func TestExecModeThatAPoolerBreaks(t *testing.T) {
	t.Parallel()
	for mode, says := range map[pgx.QueryExecMode]string{
		pgx.QueryExecModeDescribeExec:   "somebody else's statement",
		pgx.QueryExecModeCacheStatement: "loses prepared statements",
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PgBouncer)
			owner := f.pool
			f.inMode(testkit.PgBouncer, mode, 8)
			relay, err := NewRelay(f.pool, newSink(), f.config())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			// What moves the server's connections about.
			go func() {
				for ctx.Err() == nil {
					_ = pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error { return f.log.Append(ctx, tx, event("k", 1), event("l", 1)) })
				}
			}()
			err = relay.Run(ctx)
			if !errors.Is(err, ErrExecMode) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "default_query_exec_mode=exec") {
				t.Errorf("Run: %v, want ErrExecMode that says %q and the way out", err, says)
			}
		})
	}
}

// An append in a mode whose prepared statements the pooler loses fails with the way
// out, and writes nothing; in one that describes first it works, since a transaction
// stays on its connection.
func TestAppendInAnExecModeThatAPoolerBreaks(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PgBouncer)
	others := f.pool
	f.inMode(testkit.PgBouncer, pgx.QueryExecModeDescribeExec, 8)
	for n := range 20 {
		f.tx(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, event("k", n)) })
	}
	f.pool = others
	if n := f.count(`SELECT count(*) FROM ` + f.table("outbox")); n != 20 {
		t.Errorf("%d events, want 20", n)
	}

	f.inMode(testkit.PgBouncer, pgx.QueryExecModeCacheStatement, 1)
	// The pooler gives out the connection that it used last: somebody else takes the
	// one on which we have prepared.
	var failed error
	for i := 0; i < 1000 && failed == nil; i++ {
		failed = pgx.BeginFunc(t.Context(), f.pool, func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, event("k", 1)) })
		if failed == nil && i == 0 {
			held, err := others.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer held.Rollback(context.Background())
		}
	}
	if !errors.Is(failed, ErrExecMode) || !strings.Contains(fmt.Sprint(failed), "default_query_exec_mode=exec") {
		t.Errorf("append: %v, want ErrExecMode and the way out", failed)
	}
}
