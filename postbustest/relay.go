package postbustest

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

// RunToEnd runs a relay until everything that was committed at the call is settled:
// published, or parked where only a person can get it out (given up, or waiting
// behind such a one), and every replay or discard that was asked for is carried out.
// Then it stops the relay and gives what is on its desk, but for what was discarded:
// nothing, if all has been published.
//
// It fails the test, and says what is left and why, if that takes longer than 30
// seconds (or [Within]), or if the relay ends with an error. What commits later may
// be published or not. Called again with the same name, it goes on where it stopped.
//
// cfg may be zero but for the Schema. What is zero in it gets a default for tests:
// Name "test", Retry.Initial 1 ms, Retry.Max 20 ms, PollInterval 50 ms, DrainTimeout
// 1 s, and a Logger that writes to the test's log.
func RunToEnd(t testing.TB, pool *pgxpool.Pool, publisher message.Publisher, cfg outbox.RelayConfig, opts ...WaitOption) []outbox.ParkedEvent {
	t.Helper()
	logger := &testLog{t: t}
	defer logger.close()
	cfg = forTests(cfg, logger)
	relay, err := outbox.NewRelay(pool, publisher, cfg)
	if err != nil {
		t.Fatalf("RunToEnd: %v", err)
	}
	limit := limitOf(opts, 30*time.Second)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit)
	defer cancel()
	end := &endOfLog{pool: pool, cfg: cfg}
	if err := end.mark(ctx); err != nil {
		t.Fatalf("RunToEnd: %v", err)
	}

	runs, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- relay.Run(runs) }()
	stopped := sync.OnceValue(func() error { stop(); return <-ran })
	defer stopped() // also when the test is failed below

	for pause := time.Millisecond; ; pause = min(2*pause, 25*time.Millisecond) {
		left, err := end.left(ctx)
		if err == nil && len(left) == 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("RunToEnd: relay %q has not come to the end of the log in schema %q within %s%s", cfg.Name, cfg.Schema, limit, end.tell())
		}
		if err != nil {
			t.Fatalf("RunToEnd: look how far relay %q is: %v", cfg.Name, err)
		}
		timer := time.NewTimer(pause)
		select {
		case err := <-ran:
			timer.Stop()
			ran <- err // for stopped
			t.Fatalf("RunToEnd: the relay has ended before the end of the log: %v", err)
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	if err := stopped(); err != nil {
		t.Fatalf("RunToEnd: %v", err)
	}
	parked, err := desk(pool, cfg.Schema, cfg.Name)
	if err != nil {
		t.Fatalf("RunToEnd: %v", err)
	}
	return parked
}

func forTests(cfg outbox.RelayConfig, log *testLog) outbox.RelayConfig {
	cfg.Name = cmp.Or(cfg.Name, "test")
	cfg.Schema = cmp.Or(cfg.Schema, migrations.DefaultSchema)
	cfg.Retry.Initial = cmp.Or(cfg.Retry.Initial, time.Millisecond)
	cfg.Retry.Max = cmp.Or(cfg.Retry.Max, max(20*time.Millisecond, cfg.Retry.Initial))
	cfg.PollInterval = cmp.Or(cfg.PollInterval, 50*time.Millisecond)
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	}
	return cfg
}

// desk gives what is parked under a name, but for what was discarded.
func desk(pool *pgxpool.Pool, schema, name string) (all []outbox.ParkedEvent, err error) {
	open, err := outbox.NewDesk(pool, name, outbox.DeskConfig{Schema: schema})
	if err != nil {
		return nil, err
	}
	const page = 1000
	for after := int64(0); ; {
		found, err := open.Parked(context.Background(), outbox.ParkedFilter{}, after, page) // has a timeout of its own
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			after = p.LogID
			if p.State != outbox.ParkedDiscarded {
				all = append(all, p)
			}
		}
		if len(found) < page {
			return all, nil
		}
	}
}

// endOfLog knows what was committed at one moment, and what of it is left to do.
type endOfLog struct {
	pool     *pgxpool.Pool
	cfg      outbox.RelayConfig
	snapshot string     // that moment
	last     []leftOver // as last seen
}

func (e *endOfLog) mark(ctx context.Context) error {
	if err := e.pool.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&e.snapshot); err != nil {
		s := e.pool.Stat()
		return fmt.Errorf("reach the database, with %d of the pool's %d connections taken (the relay needs up to four): %w", s.AcquiredConns(), s.MaxConns(), err)
	}
	return migrations.Check(ctx, e.pool, e.cfg.Schema)
}

type leftOver struct {
	LogID     int64
	EventID   string
	EventType string
	Key       string
	Why       string
	Attempts  int
	LastError string
}

func (l leftOver) String() string {
	if l.LogID == 0 { // a request that is about no event
		return l.Why
	}
	line := fmt.Sprintf("event %d: %s", l.LogID, l.Why)
	if l.EventID != "" {
		line += fmt.Sprintf("  %s  key %q  id %s", l.EventType, l.Key, l.EventID)
	}
	if l.Attempts > 0 || l.LastError != "" {
		line += fmt.Sprintf("  %d attempts: %s", l.Attempts, clip(l.LastError, 400))
	}
	return line
}

// leftSQL gives, of what $2 sees, what relay or durable handler $1 has still to do. It is one statement,
// and so one snapshot: an event is passed and parked in one transaction.
//
// An event is passed if an earlier round has seen it, or if it is one of the present
// round at or below the position. $3: a key stops at an event that was given up.
const leftSQL = `
WITH latest AS (
	SELECT DISTINCT ON (slot_from, slot_to) slot_from, slot_to, round, last_id
	FROM {schema}.relay_link WHERE relay = $1 ORDER BY slot_from, slot_to, n DESC
), position AS (
	SELECT l.slot_from, l.slot_to, l.last_id, r.prev_snapshot, r.snapshot
	FROM latest AS l JOIN {schema}.relay_link AS r
		ON r.relay = $1 AND r.slot_from = l.slot_from AND r.slot_to = l.slot_to AND r.n = l.round
)
SELECT o.id, o.event_id::text, o.event_type, o.partition_key, 'not settled yet', 0, ''
FROM {schema}.outbox AS o
WHERE pg_visible_in_snapshot(o.xid, $2::text::pg_snapshot) AND NOT EXISTS (
	SELECT FROM position AS p WHERE o.slot BETWEEN p.slot_from AND p.slot_to
		AND (pg_visible_in_snapshot(o.xid, p.prev_snapshot) OR pg_visible_in_snapshot(o.xid, p.snapshot) AND o.id <= p.last_id))
UNION ALL
SELECT p.log_id, p.event_id::text, p.event_type, p.partition_key, p.state, p.attempts, coalesce(p.last_error, '')
FROM {schema}.parked AS p
WHERE p.relay = $1 AND pg_visible_in_snapshot(p.xid, $2::text::pg_snapshot) AND (p.state = 'retrying'
	OR p.state = 'waiting' AND NOT ($3::boolean AND EXISTS (
		SELECT FROM {schema}.parked AS g WHERE g.relay = $1 AND g.state = 'given_up'
			AND g.topic = p.topic AND g.partition_key = p.partition_key AND g.log_id < p.log_id)))
UNION ALL
SELECT coalesce(q.log_id, 0), '', '', '', 'a ' || q.action || ' that was asked for', 0, ''
FROM {schema}.relay_request AS q
WHERE q.relay = $1 AND q.done_at IS NULL
ORDER BY 1 LIMIT 100`

func (e *endOfLog) left(ctx context.Context) ([]leftOver, error) {
	left, err := leftTo(ctx, e.pool, e.cfg.Schema, e.cfg.Name, e.cfg.Policy, e.snapshot)
	if err == nil {
		e.last = left
	}
	return left, err
}

// asks is a pool or a transaction.
type asks interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func leftTo(ctx context.Context, db asks, schema, name string, policy outbox.Policy, snapshot string) ([]leftOver, error) {
	schema = pgx.Identifier{schema}.Sanitize()
	rows, err := db.Query(ctx, strings.ReplaceAll(leftSQL, "{schema}", schema), name, snapshot, policy == outbox.BlockKey)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[leftOver])
}

// tell says what is left, and what may keep it.
func (e *endOfLog) tell() string {
	lines := make([]string, len(e.last))
	for i, l := range e.last {
		lines[i] = l.String()
	}
	at := ""
	if len(e.last) == 100 {
		at = " (the first 100)"
	}
	return fmt.Sprintf("; left are %d%s:%s\nWhat may keep it: a publisher that hangs or accepts nothing at all, outcomes that stay unknown, another relay of the name that holds the lease, a long Retry. The relay's own words are in the test's log.",
		len(e.last), at, list(lines))
}

// testLog writes to a test's log, and to nothing once the helper has returned.
type testLog struct {
	mu     sync.Mutex
	t      testing.TB
	closed bool
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.t.Logf("%s", strings.TrimSuffix(string(p), "\n"))
	}
	return len(p), nil
}

func (l *testLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}
