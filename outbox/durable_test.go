package outbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
)

// effectsTable is a table that a durable handler writes to: one row per call that committed.
type effectsTable struct {
	f    *fixture
	name string
}

func (f *fixture) effectsTable() *effectsTable {
	f.t.Helper()
	e := &effectsTable{f, f.table("effects")}
	f.exec(`CREATE TABLE ` + e.name + ` (seq bigint GENERATED ALWAYS AS IDENTITY, key text, n int, pid int)`)
	testkit.GrantAll(f.t, f.pool, e.name)
	return e
}

func (e *effectsTable) book(ctx context.Context, tx *Tx, m *Message) error {
	_, err := tx.Exec(ctx, `INSERT INTO `+e.name+` (key, n, pid) VALUES ($1, $2, $3)`, m.Key, numberOf(m.Payload), os.Getpid())
	return err
}

// of gives the effects of a key, in order.
func (e *effectsTable) of(key string) (got []int) {
	e.f.t.Helper()
	rows, err := e.f.pool.Query(context.Background(), `SELECT n FROM `+e.name+` WHERE key = $1 ORDER BY seq`, key)
	if err == nil {
		got, err = pgx.CollectRows(rows, pgx.RowTo[int])
	}
	if err != nil {
		e.f.t.Fatal(err)
	}
	return got
}

// expect fails unless the effects of a key are these, each once and in this order.
func (e *effectsTable) expect(key string, want ...int) {
	e.f.t.Helper()
	if got := e.of(key); !slices.Equal(got, want) {
		e.f.t.Errorf("key %s: effects %v, want %v", key, got, want)
	}
}

// expectUpTo is expect for 1 to n.
func (e *effectsTable) expectUpTo(n int, keys ...string) {
	e.f.t.Helper()
	want := make([]int, n)
	for i := range want {
		want[i] = i + 1
	}
	for _, k := range keys {
		e.expect(k, want...)
	}
}

func (e *effectsTable) count() int { return e.f.count(`SELECT count(*) FROM ` + e.name) }

// reaches waits until there are n effects.
func (e *effectsTable) reaches(n int) {
	e.f.t.Helper()
	eventually(e.f.t, func() bool { return e.count() >= n }, "%d effects", n)
}

// aside counts what is put aside and not discarded.
func (f *fixture) aside() int {
	f.t.Helper()
	return f.count(`SELECT count(*) FROM ` + f.table("parked") + ` WHERE state <> 'discarded'`)
}

func (f *fixture) durableConfig(name string) DurableConfig {
	c := f.config()
	return DurableConfig{Name: name, Schema: f.schema, Lease: c.Lease, PollInterval: c.PollInterval, Retry: c.Retry, Logger: c.Logger, DatabaseTimeout: c.DatabaseTimeout}
}

// durable runs a durable handler until the test ends or stop is called, which gives Run's error.
func (f *fixture) durable(handle DurableFunc, cfg DurableConfig) (stop func() error) {
	f.t.Helper()
	d, err := NewDurable(f.as(testkit.Relay), handle, cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	f.t.Cleanup(func() {
		if err := stop(); err != nil {
			f.t.Errorf("durable handler: %v", err)
		}
	})
	return stop
}

// What a handler writes is there once for each event, in the order of its key, however
// it fails in between.
func TestDurableHandlerTakesEffectOnceAndInOrder(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 7} {
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			e := f.effectsTable()
			keys := names("k", 5)
			f.backlog(10, keys...)
			tries := map[string]int{}
			cfg := f.durableConfig("book")
			cfg.Batch = batch
			f.durable(func(ctx context.Context, tx *Tx, m *Message) error {
				if err := e.book(ctx, tx, m); err != nil {
					return err
				}
				id := fmt.Sprint(m.Key, numberOf(m.Payload))
				if tries[id]++; m.Key == "k2" && tries[id] <= 2 {
					return errors.New("not now")
				}
				return nil
			}, cfg)
			e.reaches(50)
			e.expectUpTo(10, keys...)
			eventually(t, func() bool { return f.aside() == 0 }, "nothing is put aside any more")
		})
	}
}
