package outbox

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

// ledger is a table that a durable handler writes to: one row per call that committed.
type effectsTable struct {
	f    *fixture
	name string
}

func (f *fixture) effectsTable() *effectsTable {
	f.t.Helper()
	e := &effectsTable{f, f.table("effects")}
	if _, err := f.pool.Exec(f.t.Context(), `CREATE TABLE `+e.name+` (seq bigint GENERATED ALWAYS AS IDENTITY, key text, n int)`); err != nil {
		f.t.Fatal(err)
	}
	return e
}

func (e *effectsTable) book(ctx context.Context, tx *Tx, m *Message) error {
	_, err := tx.Exec(ctx, `INSERT INTO `+e.name+` (key, n) VALUES ($1, $2)`, m.Key, numberOf(m.Payload))
	return err
}

func (e *effectsTable) of(key string) (got []int) {
	e.f.t.Helper()
	rows, err := e.f.pool.Query(e.f.t.Context(), `SELECT n FROM `+e.name+` WHERE key = $1 ORDER BY seq`, key)
	if err != nil {
		e.f.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			e.f.t.Fatal(err)
		}
		got = append(got, n)
	}
	return got
}

func (e *effectsTable) count() int { return e.f.count(`SELECT count(*) FROM ` + e.name) }

func (f *fixture) durableConfig(name string) DurableConfig {
	c := f.config()
	return DurableConfig{Name: name, Schema: f.schema, Lease: c.Lease, PollInterval: c.PollInterval, Retry: c.Retry, Logger: c.Logger, DatabaseTimeout: c.DatabaseTimeout}
}

func (f *fixture) durable(handle DurableFunc, cfg DurableConfig) (stop func()) {
	f.t.Helper()
	d, err := NewDurable(f.pool, handle, cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
		done <- nil
	}
	f.t.Cleanup(stop)
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
			eventually(t, func() bool { return e.count() == 50 }, "all is handled")
			for _, k := range keys {
				if got := fmt.Sprint(e.of(k)); got != "[1 2 3 4 5 6 7 8 9 10]" {
					t.Errorf("key %s: %s", k, got)
				}
			}
			eventually(t, func() bool { return f.count(`SELECT count(*) FROM `+f.table("parked")) == 0 }, "nothing is put aside any more")
		})
	}
}
