package outbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
)

// Whatever a handler does to its transaction or to itself: nothing of it takes effect,
// it is told in the event's last error, an attempt is counted, the other keys go on,
// and once it behaves the event takes effect once.
func TestHandlerThatMisbehavesTakesNoEffect(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]struct {
		do   func(ctx context.Context, tx *Tx) error
		says string
	}{
		"panics":   {func(context.Context, *Tx) error { panic("a bug of theirs") }, "a bug of theirs"},
		"goexit":   {func(context.Context, *Tx) error { runtime.Goexit(); return nil }, "Goexit"},
		"commits":  {func(ctx context.Context, tx *Tx) error { _ = tx.Commit(ctx); return nil }, "belongs to"},
		"rolls":    {func(ctx context.Context, tx *Tx) error { _ = tx.Rollback(ctx); return nil }, "belongs to"},
		"ROLLBACK": {func(ctx context.Context, tx *Tx) error { _, _ = tx.Exec(ctx, "ROLLBACK"); return nil }, "belongs to"},
		"END":      {func(ctx context.Context, tx *Tx) error { return tx.QueryRow(ctx, "; End work").Scan() }, "belongs to"},
		"COMMIT":   {func(ctx context.Context, tx *Tx) error { _, _ = tx.Exec(ctx, " /* by hand */ commit"); return nil }, "belongs to"},
		"END in a batch": {func(ctx context.Context, tx *Tx) error {
			var b pgx.Batch
			b.Queue("SELECT 1")
			b.Queue("-- so\nEND")
			return tx.SendBatch(ctx, &b).Close()
		}, "belongs to"},
		"COMMIT in a savepoint": {func(ctx context.Context, tx *Tx) error {
			sub, err := tx.Begin(ctx)
			if err == nil {
				_, err = sub.Exec(ctx, "COMMIT")
			}
			return err
		}, "belongs to"},
		"leaves rows open": {func(ctx context.Context, tx *Tx) error {
			rows, err := tx.Query(ctx, `SELECT generate_series(1, 100000)`)
			if err == nil {
				rows.Next()
			}
			return err
		}, "rows"},
		"leaves it aborted":    {func(ctx context.Context, tx *Tx) error { _, _ = tx.Exec(ctx, `SELECT 1/0`); return nil }, "aborts the transaction"},
		"fails at the commit":  {nil, "at its commit"},
		"outlasts its timeout": {func(ctx context.Context, tx *Tx) error { <-ctx.Done(); return ctx.Err() }, "deadline"},
		"a statement too long": {func(_ context.Context, tx *Tx) error {
			_, err := tx.Exec(context.Background(), `SELECT pg_sleep(60)`)
			return err
		}, "statement timeout"},
		"is cut off":                   {nil, "terminating connection"},
		"is cut off, and says nothing": {nil, "connection was lost"},
		"hangs":                        {func(context.Context, *Tx) error { <-neverReturns; return nil }, "did not return"},
		"hangs, and goes on later": {func(ctx context.Context, tx *Tx) error {
			<-ctx.Done()
			for { // until the connection is taken away
				if _, err := tx.Exec(context.Background(), `SELECT 1`); err != nil {
					return nil
				}
			}
		}, ""},
	} {
		for _, batch := range []int{1, 20} {
			t.Run(fmt.Sprint(name, "/batch ", batch), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, testkit.PG15)
				e := f.effectsTable()
				f.exec(`CREATE TABLE ` + f.table("parent") + ` (i int PRIMARY KEY)`)
				f.exec(`CREATE TABLE ` + f.table("checked") + ` (i int REFERENCES ` + f.table("parent") + ` DEFERRABLE INITIALLY DEFERRED)`)
				testkit.GrantAll(t, f.pool, f.table("checked"), f.table("parent"))
				var good atomic.Bool
				cfg := f.durableConfig("test")
				cfg.Batch, cfg.Lease, cfg.HandlerTimeout = batch, 2*time.Second, 300*time.Millisecond
				if name == "a statement too long" {
					cfg.HandlerTimeout = time.Minute
				}
				cfg.Retry.MaxAttempts = 1_000_000
				f.backlog(3, "a", "b", "c")
				f.durable(func(ctx context.Context, tx *Tx, m *Message) error {
					if err := e.book(ctx, tx, m); err != nil {
						return err
					}
					if m.Key != "a" || numberOf(m.Payload) != 2 || good.Load() {
						return nil
					}
					if strings.HasPrefix(name, "is cut off") {
						var pid int
						if err := tx.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
							return err
						}
						f.exec(`SELECT pg_terminate_backend($1)`, pid)
						_, err := tx.Exec(ctx, `SELECT pg_sleep(1)`)
						if name != "is cut off" {
							return nil
						}
						return err
					}
					if name == "fails at the commit" {
						_, err := tx.Exec(ctx, `INSERT INTO `+f.table("checked")+` VALUES (0)`)
						return err
					}
					return bad.do(ctx, tx)
				}, cfg)
				e.reaches(7)
				var attempts int
				var said string
				eventually(t, func() bool {
					_ = f.pool.QueryRow(t.Context(), `SELECT attempts, last_error FROM `+f.table("parked")+` WHERE attempts > 0`).Scan(&attempts, &said)
					return attempts >= 2
				}, "attempts are counted")
				if !strings.Contains(said, bad.says) {
					t.Errorf("it says %q, want something with %q", said, bad.says)
				}
				e.expect("a", 1)
				f.add("b", 4, 1)
				e.reaches(8)
				good.Store(true)
				e.reaches(10)
				e.expectUpTo(3, "a", "c")
				e.expectUpTo(4, "b")
			})
		}
	}
}

func TestStatementsThatEndATransaction(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]bool{
		"COMMIT": true, " ;;commit and chain": true, "/* a */-- b\n end": true, "Rollback": true, "ROLLBACK WORK": true,
		"PREPARE TRANSACTION 'x'": true, "abort;": true,
		"ROLLBACK TO SAVEPOINT a": false, "rollback work to a": false, "PREPARE x AS SELECT 1": false, "SELECT 'COMMIT'": false,
		"COMMITTED": false, "": false, "/* open": false, "--": false, "SAVEPOINT a": false, "RELEASE a": false,
	} {
		if got := endsTx(sql); got != want {
			t.Errorf("%q: %t", sql, got)
		}
	}
}

// neverReturns is what handlers hang at.
var neverReturns = make(chan struct{})

// A conflict with another transaction is tried again at once, and no attempt is counted.
func TestConflictOfADurableHandlerIsTriedAgainAtOnce(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"40001", "40P01"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			e := f.effectsTable()
			var calls atomic.Int64
			cfg := f.durableConfig("test")
			cfg.Retry.Initial, cfg.Retry.Max = time.Hour, time.Hour
			cfg.Hooks.Parked = func(ParkedInfo) { t.Error("it was put aside") }
			f.backlog(2, "a")
			f.durable(func(ctx context.Context, tx *Tx, m *Message) error {
				if err := e.book(ctx, tx, m); err != nil {
					return err
				}
				if calls.Add(1) < conflictRetries {
					_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE EXCEPTION 'in the way' USING ERRCODE = '`+code+`'; END $$`)
					return fmt.Errorf("book it: %w", err)
				}
				return nil
			}, cfg)
			e.reaches(2)
			e.expectUpTo(2, "a")
		})
	}
}

// A handler may use all of a transaction, savepoints too.
func TestTxOfADurableHandlerIsAWholeTransaction(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, which)
			e := f.effectsTable()
			var after atomic.Int64
			undo := errors.New("undo")
			f.backlog(3, "a")
			f.durable(func(ctx context.Context, tx *Tx, m *Message) error {
				tx.AfterCommit(func() { after.Add(1) })
				if err := pgx.BeginFunc(ctx, tx, func(sub pgx.Tx) error {
					if err := e.book(ctx, tx, m); err != nil {
						return err
					}
					return undo
				}); !errors.Is(err, undo) {
					return err
				}
				return pgx.BeginFunc(ctx, tx, func(sub pgx.Tx) error {
					var b pgx.Batch
					b.Queue(`INSERT INTO `+e.name+` (key, n) VALUES ($1, $2)`, m.Key, numberOf(m.Payload))
					return sub.SendBatch(ctx, &b).Close()
				})
			}, f.durableConfig("test"))
			e.reaches(3)
			e.expectUpTo(3, "a")
			eventually(t, func() bool { return after.Load() == 3 }, "all is told after the commit")
		})
	}
}
