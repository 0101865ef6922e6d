package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/postbus/postbus/internal/testkit"
)

var repeatableRead = WithTxOptions(pgx.TxOptions{IsoLevel: pgx.RepeatableRead})

// conflicting publishes in a transaction whose row somebody else has changed
// after its snapshot, as long as conflicts is positive.
func conflicting(w *world, calls *int, conflicts int) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		*calls++
		if err := w.bus.Publish(ctx, tx, order(fmt.Sprint("attempt ", *calls))); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT n FROM "+w.table()); err != nil {
			return err
		}
		if *calls <= conflicts {
			w.exec("UPDATE " + w.table() + " SET n = n + 1")
		}
		_, err := tx.Exec(ctx, "UPDATE "+w.table()+" SET n = n + 100")
		return err
	}
}

func TestRetryStartsClean(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	w.exec("INSERT INTO " + w.table() + " VALUES ('row', 0)")
	calls := 0
	if err := InTx(t.Context(), w.pool, conflicting(w, &calls, 2), repeatableRead, RetryConflicts(5)); err != nil {
		t.Fatal(err)
	}
	announced.want(t, "attempt 3")
	equal(t, w.loggedKeys(), "order.placed attempt 3")
	if n := query[int32](w, "SELECT n FROM "+w.table())[0]; n != 102 {
		t.Fatalf("n = %d", n)
	}
}

func TestRetryIsBounded(t *testing.T) {
	w := newWorld(t)
	w.exec("INSERT INTO " + w.table() + " VALUES ('row', 0)")
	calls := 0
	err := InTx(t.Context(), w.pool, conflicting(w, &calls, 100), repeatableRead, RetryConflicts(3))
	var conflict *ConflictError
	var pg *pgconn.PgError
	if !errors.As(err, &conflict) || conflict.Attempts != 3 || calls != 3 || !errors.As(err, &pg) || pg.Code != "40001" {
		t.Fatalf("after %d calls: %v", calls, err)
	}
	says(t, err, ErrConflict, "in 3 attempts")

	calls = 0
	err = InTx(t.Context(), w.pool, conflicting(w, &calls, 100), repeatableRead) // no option, no retry
	if errors.As(err, &conflict) || !errors.As(err, &pg) || calls != 1 {
		t.Fatalf("after %d calls: %v", calls, err)
	}

	calls = 0
	err = InTx(t.Context(), w.pool, func(context.Context, pgx.Tx) error { calls++; return errUndo }, RetryConflicts(3))
	if err != errUndo || calls != 1 {
		t.Fatalf("after %d calls: %v", calls, err)
	}
	equal(t, w.loggedKeys())
}

func TestRetryEndsWithTheContext(t *testing.T) {
	w := newWorld(t)
	w.exec("INSERT INTO " + w.table() + " VALUES ('row', 0)")
	calls := 0
	ctx, cancel := context.WithCancel(t.Context())
	fn := conflicting(w, &calls, 100)
	err := InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
		err := fn(ctx, tx)
		cancel()
		return err
	}, repeatableRead, RetryConflicts(1000))
	says(t, err, context.Canceled, "before attempt 2", "40001")
}

// Write skew: each reads the row that the other writes, and the second COMMIT, or
// a statement before it, fails.
func TestRetryOfSerializationFailureAtCommit(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	w.exec("INSERT INTO " + w.table() + " VALUES ('a', 0), ('b', 0)")
	var both sync.WaitGroup // both have read before one writes
	both.Add(2)
	var failed notes
	var done sync.WaitGroup
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}} {
		first := true
		done.Go(func() {
			err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
				if !first {
					failed.add(pair[0])
				}
				var n int
				if err := tx.QueryRow(ctx, "SELECT n FROM "+w.table()+" WHERE id = $1", pair[0]).Scan(&n); err != nil {
					return err
				}
				if first {
					first = false
					both.Done()
					both.Wait()
				}
				if _, err := tx.Exec(ctx, "UPDATE "+w.table()+" SET n = $2 WHERE id = $1", pair[1], n+1); err != nil {
					return err
				}
				return w.bus.Publish(ctx, tx, order(pair[0]))
			}, WithTxOptions(pgx.TxOptions{IsoLevel: pgx.Serializable}), RetryConflicts(10))
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	if len(failed.list) == 0 {
		t.Error("nothing was retried: the test has no conflict")
	}
	if len(announced.list) != 2 || len(w.logged()) != 2 {
		t.Errorf("announced %q, logged %q", announced.list, w.loggedKeys())
	}
}

func TestRetryOfDeadlock(t *testing.T) {
	fast := func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["deadlock_timeout"] = "20ms" }
	w := newWorldAt(t, testkit.PG15, Config{}, fast)
	announced := w.announced()
	w.exec("INSERT INTO " + w.table() + " VALUES ('a', 0), ('b', 0)")
	var both sync.WaitGroup
	both.Add(2)
	var calls notes
	var done sync.WaitGroup
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}} {
		first := true
		done.Go(func() {
			err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
				calls.add(pair[0])
				if err := w.bus.Publish(ctx, tx, order(pair[0])); err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, "UPDATE "+w.table()+" SET n = n + 1 WHERE id = $1", pair[0]); err != nil {
					return err
				}
				if first {
					first = false
					both.Done()
					both.Wait()
				}
				_, err := tx.Exec(ctx, "UPDATE "+w.table()+" SET n = n + 1 WHERE id = $1", pair[1])
				return err
			}, RetryConflicts(10))
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	if len(calls.list) < 3 {
		t.Error("nothing was retried: the test has no deadlock")
	}
	if len(announced.list) != 2 || len(w.logged()) != 2 {
		t.Errorf("announced %q, logged %q", announced.list, w.loggedKeys())
	}
}
