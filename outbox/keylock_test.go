package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

func (f *fixture) lockKeys() *fixture {
	f.t.Helper()
	var err error
	if f.log, err = NewLog(LogConfig{Schema: f.schema, LockKeys: true}); err != nil {
		f.t.Fatal(err)
	}
	return f
}

// atOnce runs each in a goroutine, and waits for all.
func atOnce(t *testing.T, do ...func() error) {
	t.Helper()
	var all sync.WaitGroup
	for _, do := range do {
		all.Go(func() {
			if err := do(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestKeyLockOfCrossingAppends(t *testing.T) {
	f := setUp(t, testkit.PG15).lockKeys()
	if f.log.keyLock("A") == f.log.keyLock("B") {
		t.Fatal("A and B share a lock: take other keys")
	}
	writer := func(first, second string) func() error {
		return func() error {
			for n := range 200 {
				err := pgx.BeginFunc(t.Context(), f.pool, func(tx pgx.Tx) error {
					return f.log.Append(t.Context(), tx, event(first, n), event(second, n))
				})
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
	atOnce(t, writer("A", "B"), writer("B", "A"))
	if n := f.count("SELECT count(*) FROM " + f.table("outbox")); n != 800 {
		t.Fatalf("%d rows", n)
	}
}

// Whoever has appended to a key sees all that was appended to it before, and there
// is no row that they could have locked.
func TestKeyLockOrdersWritersWithoutARowLock(t *testing.T) {
	f := setUp(t, testkit.PG15).lockKeys()
	var mu sync.Mutex
	saw := map[uuid.UUID]int{} // how many events of the key, the own one included
	writer := func() error {
		for n := range 30 {
			key := fmt.Sprint("key ", n%2)
			e, more := event(key, n), event("other "+key, n)
			err := pgx.BeginFunc(t.Context(), f.pool, func(tx pgx.Tx) error {
				evs := []events.DomainEvent{e}
				if n%3 == 0 { // by COPY
					evs = append(evs, more)
				}
				if err := f.log.Append(t.Context(), tx, evs...); err != nil {
					return err
				}
				var before int
				if err := tx.QueryRow(t.Context(), "SELECT count(*) FROM "+f.table("outbox")+" WHERE partition_key = $1", key).Scan(&before); err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				saw[e.EventID] = before
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	atOnce(t, writer, writer, writer)
	for _, key := range []string{"key 0", "key 1"} {
		rows, err := f.pool.Query(t.Context(), "SELECT event_id FROM "+f.table("outbox")+" WHERE partition_key = $1 ORDER BY id", key)
		if err != nil {
			t.Fatal(err)
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[[16]byte])
		if err != nil || len(ids) != 45 {
			t.Fatalf("%d rows, %v", len(ids), err)
		}
		for i, id := range ids {
			if saw[id] != i+1 {
				t.Fatalf("%s: the event at place %d was appended behind %d others", key, i+1, saw[id]-1)
			}
		}
	}
}

func TestKeyLockWaitsForItsKeyOnly(t *testing.T) {
	f := setUp(t, testkit.PG15).lockKeys()
	holder, err := f.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(context.Background())
	if err := f.log.Append(t.Context(), holder, event("A", 1)); err != nil {
		t.Fatal(err)
	}
	f.tx(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, event("B", 1)) }) // does not wait

	// A refused event takes no lock.
	f.tx(func(tx pgx.Tx) error {
		bad := event("A", 2)
		bad.Data = nil
		if err := f.log.Append(t.Context(), tx, bad); !errors.Is(err, events.ErrInvalidEvent) {
			t.Errorf("%v", err)
		}
		return nil
	})

	waited := make(chan error, 1)
	go func() {
		waited <- pgx.BeginFunc(t.Context(), f.pool, func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, event("A", 2)) })
	}()
	testkit.Eventually(t, 10*time.Second, func() bool {
		return f.count(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1::bigint::oid AND objid = $2::bigint::oid AND objsubid = 2 AND NOT granted`,
			int64(KeyLockClass), int64(f.log.keyLock("A"))) == 1
	}, "the second append of A waits")
	if err := holder.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
}

func TestKeyLocksAreBounded(t *testing.T) {
	f := setUp(t, testkit.PG15).lockKeys()
	evs := make([]events.DomainEvent, 10_000)
	for i := range evs {
		evs[i] = event(fmt.Sprint("key ", i), i)
	}
	f.tx(func(tx pgx.Tx) error {
		if err := f.log.Append(t.Context(), tx, evs...); err != nil {
			return err
		}
		var n int
		err := tx.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'").Scan(&n)
		if n != KeyLocks {
			t.Errorf("%d locks for 10,000 keys", n)
		}
		return err
	})
}

func TestKeyLockInEveryExecMode(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe,
		pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		f := setUp(t, testkit.PG15).lockKeys()
		f.pool = testkit.Postgres(t, testkit.PG15, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
		f.tx(func(tx pgx.Tx) error {
			if err := f.log.Append(t.Context(), tx, event("A", 1)); err != nil {
				return err
			}
			return f.log.Append(t.Context(), tx, event("A", 2), event("B", 1))
		})
		if n := f.count("SELECT count(*) FROM " + f.table("outbox")); n != 3 {
			t.Errorf("%s: %d rows", mode, n)
		}
	}
}
