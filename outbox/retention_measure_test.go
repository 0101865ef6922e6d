package outbox

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// The ways to take rows from the log, measured against each other on a server of
// their own: what appends feel, what is written, what the tables weigh, with nothing
// else open and with what usually stands in the way. It takes some minutes:
//
//	POSTBUS_MEASURE=1 go test -run TestMeasureRetention -v -timeout 30m ./outbox
//
// POSTBUS_MEASURE_SECONDS is the length of one phase (20), POSTBUS_MEASURE_RATE the
// appends a second (2,000).
func TestMeasureRetention(t *testing.T) {
	if os.Getenv("POSTBUS_MEASURE") == "" {
		t.Skip("set POSTBUS_MEASURE=1: it takes some minutes and wants the machine for itself")
	}
	seconds, rate := measureNumber("POSTBUS_MEASURE_SECONDS", 20), measureNumber("POSTBUS_MEASURE_RATE", 2000)
	only := os.Getenv("POSTBUS_MEASURE_ONLY")
	for _, c := range []wayOut{&keepAll{}, &byDelete{}, &byRing{}, &byPartition{}, &byPartition{concurrently: true}} {
		if only == "" || strings.Contains(c.name(), only) {
			t.Run(c.name(), func(t *testing.T) { measureOne(t, c, time.Duration(seconds)*time.Second, rate) })
		}
	}
}

func measureNumber(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return def
}

// A wayOut keeps the rows of the last measureKeep.
type wayOut interface {
	name() string
	prepare(m *measurement)
	appendTo() string // the table that appends go to now
	tables() []string // all that hold rows
	sweep(ctx context.Context, m *measurement) error
}

const (
	measureKeep  = 3 * time.Second
	measureEvery = 500 * time.Millisecond
	measureLock  = "50ms" // how long a statement may wait for a lock that appends queue behind
)

type measurement struct {
	t      *testing.T
	pool   *pgxpool.Pool
	db     *database
	rate   int
	most   int64 // ids that will be used
	lastID atomic.Int64
	missed int           // sweeps that got no lock
	locked time.Duration // the longest that an append has been seen to wait for a lock on a table
}

func (m *measurement) exec(sql string, args ...any) {
	m.t.Helper()
	if _, err := m.pool.Exec(context.Background(), sql, args...); err != nil {
		m.t.Fatalf("%s: %v", sql, err)
	}
}

func measureOne(t *testing.T, c wayOut, phase time.Duration, rate int) {
	server := testkit.PrivatePostgres(t, "shared_buffers=256MB", "max_wal_size=4GB", "fsync=on", "autovacuum_naptime=5s")
	pool := testkit.Pool(t, server.URL(), func(cfg *pgxpool.Config) { cfg.MaxConns = 12 })
	if err := migrations.Up(t.Context(), pool, "measure"); err != nil {
		t.Fatal(err)
	}
	m := &measurement{t: t, pool: pool, db: &database{pool: pool, schema: "measure", timeout: 30 * time.Second}, rate: rate,
		most: int64(6*phase.Seconds()) * int64(rate)}
	c.prepare(m)

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() {
		for ctx.Err() == nil {
			if err := c.sweep(ctx, m); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
			sleep(ctx, measureEvery)
		}
	})
	fmt.Printf("%-26s %-28s %8s %8s %8s %9s %9s %7s  %s\n", c.name(), "while", "p50", "p99", "max", "on locks", "WAL/event", "missed", "MB of table + indexes, five times per phase")
	m.phase(c, "warming up", phase/2, nil)
	m.phase(c, "nothing", phase, nil)
	m.phase(c, "a transaction that appended", phase, func(tx pgx.Tx) error { return m.insert(ctx, tx, c) })
	m.phase(c, "an old snapshot", phase, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class`)
		return err
	})
	m.phase(c, "ACCESS SHARE, as pg_dump", phase, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `LOCK TABLE `+strings.Join(c.tables(), ", ")+` IN ACCESS SHARE MODE`)
		return err
	})
	m.phase(c, "nothing again", phase, nil)
}

const measureColumns = ` (slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
	VALUES (1, 1, gen_random_uuid(), 'order', 'order.changed', 'o-17', 'application/json', $1) RETURNING id`

var measurePayload = bytes.Repeat([]byte("x"), 600)

func (m *measurement) insert(ctx context.Context, on interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, c wayOut) error {
	var id int64
	if err := on.QueryRow(ctx, `INSERT INTO `+c.appendTo()+measureColumns, measurePayload).Scan(&id); err != nil {
		return err
	}
	for old := m.lastID.Load(); old < id && !m.lastID.CompareAndSwap(old, id); old = m.lastID.Load() {
	}
	return nil
}

// phase appends at the rate while what open has opened stays open.
func (m *measurement) phase(c wayOut, name string, length time.Duration, open func(pgx.Tx) error) {
	m.t.Helper()
	ctx := context.Background()
	if open != nil {
		tx, err := m.pool.Begin(ctx)
		if err != nil {
			m.t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(ctx) }()
		if err := open(tx); err != nil {
			m.t.Fatal(err)
		}
	}
	var before, after string
	if err := m.pool.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&before); err != nil {
		m.t.Fatal(err)
	}
	const writers = 4
	watching, unwatch := context.WithCancel(ctx)
	var running, watcher sync.WaitGroup
	watcher.Go(func() { m.watchLocks(watching) })
	took := make([][]time.Duration, writers)
	began := time.Now()
	every := time.Second * writers / time.Duration(m.rate)
	for w := range writers {
		running.Go(func() {
			for at := began.Add(every * time.Duration(w) / writers); at.Before(began.Add(length)); at = at.Add(every) {
				sleep(ctx, time.Until(at))
				sent := time.Now()
				if err := m.insert(ctx, m.pool, c); err != nil {
					m.t.Error(err)
					return
				}
				took[w] = append(took[w], time.Since(sent))
			}
		})
	}
	var sizes []string
	for i := range 5 {
		sleep(ctx, time.Until(began.Add(length*time.Duration(i+1)/5)))
		// Of a table that is being detached nobody can read even the size.
		size, bytes := "?", int64(0)
		asking, cancel := context.WithTimeout(ctx, time.Second)
		if m.pool.QueryRow(asking, `SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest($1::text[]) AS name`, c.tables()).Scan(&bytes) == nil {
			size = fmt.Sprint(bytes >> 20)
		}
		cancel()
		sizes = append(sizes, size)
	}
	running.Wait()
	unwatch()
	watcher.Wait()
	if err := m.pool.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&after); err != nil {
		m.t.Fatal(err)
	}
	var wal float64
	if err := m.pool.QueryRow(ctx, `SELECT $1::pg_lsn - $2::pg_lsn`, after, before).Scan(&wal); err != nil {
		m.t.Fatal(err)
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	at := func(share float64) time.Duration {
		return all[min(len(all)-1, int(share*float64(len(all))))].Round(10 * time.Microsecond)
	}
	fmt.Printf("%-26s %-28s %8s %8s %8s %9s %9.0f %7d  %s\n", "", name, at(0.5), at(0.99), at(1), m.locked, wal/float64(len(all)), m.missed, strings.Join(sizes, " "))
	m.missed, m.locked = 0, 0
}

// watchLocks looks every few milliseconds whether an append waits for a lock on a
// table, which tells it from one that waits for a machine that others use too.
func (m *measurement) watchLocks(ctx context.Context) {
	conn, err := m.pool.Acquire(ctx)
	if err != nil {
		return
	}
	defer conn.Release()
	for ctx.Err() == nil {
		var ms int
		if err := conn.QueryRow(ctx, `SELECT coalesce(max(extract(milliseconds FROM clock_timestamp() - query_start)), 0)::int FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND wait_event = 'relation' AND query LIKE 'INSERT%'`).Scan(&ms); err != nil {
			return
		}
		m.locked = max(m.locked, time.Duration(ms)*time.Millisecond)
		sleep(ctx, 3*time.Millisecond)
	}
}

// keepAll takes nothing: what the others are compared with.
type keepAll struct{}

func (*keepAll) name() string                              { return "nothing leaves" }
func (*keepAll) prepare(*measurement)                      {}
func (*keepAll) appendTo() string                          { return "measure.outbox" }
func (*keepAll) tables() []string                          { return []string{"measure.outbox"} }
func (*keepAll) sweep(context.Context, *measurement) error { return nil }

// byDelete is Retention as it is, behind a relay that has always just passed everything.
type byDelete struct {
	keeper *Retention
	relay  *chain
}

func (*byDelete) name() string     { return "chunked DELETE (Retention)" }
func (*byDelete) appendTo() string { return "measure.outbox" }
func (*byDelete) tables() []string { return []string{"measure.outbox"} }

func (c *byDelete) prepare(m *measurement) {
	var err error
	if c.keeper, err = NewRetention(m.pool, RetentionConfig{Schema: "measure", Keep: measureKeep, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		m.t.Fatal(err)
	}
	c.relay = newChain(m.db, owner{kindRelay, "measure"}, allSlots, uuid.New())
	if err := c.relay.create(m.t.Context(), FromBeginning); err != nil {
		m.t.Fatal(err)
	}
}

func (c *byDelete) sweep(ctx context.Context, m *measurement) error {
	if err := c.relay.start(ctx, m.lastID.Load()); err != nil {
		return err
	}
	if err := c.relay.finish(ctx); err != nil {
		return err
	}
	_, err := c.keeper.Once(ctx)
	return err
}

// byPartition drops partitions of some seconds' ids.
type byPartition struct {
	concurrently bool // DETACH CONCURRENTLY before the DROP
	mu           sync.Mutex
	parts        []int64 // first id of each
	width        int64
	detached     map[int64]bool
}

func (c *byPartition) name() string {
	if c.concurrently {
		return "DETACH CONCURRENTLY, DROP"
	}
	return "DROP of partitions"
}

func (c *byPartition) prepare(m *measurement) {
	c.width, c.detached = int64(m.rate)*2, map[int64]bool{}
	m.exec(`CREATE TABLE measure.log (LIKE measure.outbox INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY RANGE (id)`)
	m.exec(`CREATE INDEX ON measure.log (xid, id)`)
	// All at once: in DETACH CONCURRENTLY the sweep stands for as long as somebody's
	// transaction does, and appends need a partition to go to meanwhile.
	for range m.most/c.width + 3 {
		c.add(m)
	}
}

func (c *byPartition) add(m *measurement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := int64(1)
	if len(c.parts) > 0 {
		from = c.parts[len(c.parts)-1] + c.width
	}
	name := fmt.Sprintf("measure.log_%d", from)
	// ATTACH, which takes SHARE UPDATE EXCLUSIVE, and not PARTITION OF, which keeps appends out.
	m.exec(fmt.Sprintf(`CREATE TABLE %s (LIKE measure.log INCLUDING DEFAULTS INCLUDING INDEXES, CHECK (id >= %d AND id < %d))`, name, from, from+c.width))
	m.exec(fmt.Sprintf(`ALTER TABLE measure.log ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%d)`, name, from, from+c.width))
	c.parts = append(c.parts, from)
}

func (*byPartition) appendTo() string { return "measure.log" }

func (c *byPartition) tables() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, p := range c.parts {
		names = append(names, fmt.Sprintf("measure.log_%d", p))
	}
	return names
}

func (c *byPartition) sweep(ctx context.Context, m *measurement) error {
	for len(c.parts) > 3 {
		from := c.parts[0]
		name := fmt.Sprintf("measure.log_%d", from)
		var young bool
		if from+c.width > m.lastID.Load() {
			return nil
		}
		if err := m.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+name+` WHERE at >= clock_timestamp() - $1::interval)`, measureKeep.String()).Scan(&young); err != nil || young {
			return err
		}
		if c.concurrently && !c.detached[from] {
			if _, err := m.pool.Exec(ctx, `ALTER TABLE measure.log DETACH PARTITION `+name+` CONCURRENTLY`); err != nil {
				return err
			}
			c.detached[from] = true
		}
		c.mu.Lock() // the sizes are not asked for meanwhile
		_, err := m.pool.Exec(ctx, `BEGIN; SET LOCAL lock_timeout = '`+measureLock+`'; DROP TABLE `+name+`; COMMIT`)
		if err == nil {
			c.parts = c.parts[1:]
		}
		c.mu.Unlock()
		if err != nil {
			m.missed++
			return nil
		}
	}
	return nil
}

// byRing appends to one table of three, and empties the next before it goes on to
// that one.
type byRing struct{ current atomic.Int32 }

func (*byRing) name() string { return "TRUNCATE of a ring" }

func (c *byRing) prepare(m *measurement) {
	for i := range 3 {
		m.exec(fmt.Sprintf(`CREATE TABLE measure.log_%d (LIKE measure.outbox INCLUDING DEFAULTS INCLUDING INDEXES)`, i))
	}
}

func (c *byRing) appendTo() string { return fmt.Sprintf("measure.log_%d", c.current.Load()) }
func (*byRing) tables() []string   { return []string{"measure.log_0", "measure.log_1", "measure.log_2"} }

// sweep goes on to the next table once the present one is as old as a third of what
// is kept; the next one must have been emptied, and nobody may still append to it.
func (c *byRing) sweep(ctx context.Context, m *measurement) error {
	now := c.current.Load()
	next := fmt.Sprintf("measure.log_%d", (now+1)%3)
	var due, young bool
	err := m.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+c.appendTo()+` WHERE at < clock_timestamp() - $1::interval / 2),
		EXISTS (SELECT FROM `+next+` WHERE at >= clock_timestamp() - $1::interval)`, measureKeep.String()).Scan(&due, &young)
	if err != nil || !due || young {
		return err
	}
	err = pgx.BeginFunc(ctx, m.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '`+measureLock+`'; LOCK TABLE `+next+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		var late bool // committed since we looked
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+next+` WHERE at >= clock_timestamp() - $1::interval)`, measureKeep.String()).Scan(&late); err != nil || late {
			return err
		}
		_, err := tx.Exec(ctx, `TRUNCATE `+next)
		return err
	})
	if err != nil {
		m.missed++
		return nil
	}
	c.current.Store((now + 1) % 3)
	return nil
}
