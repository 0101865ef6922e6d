package outbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// crashing is a server of the test's own whose sessions commit without waiting
// for the disk: a crash takes their last transactions, xids and ids with it.
func crashing(t *testing.T) (*testkit.PrivateServer, *fixture) {
	t.Helper()
	server := testkit.PrivatePostgres(t, "wal_writer_delay=10s", "autovacuum=off")
	f := &fixture{t: t, schema: "crashing", pool: testkit.Pool(t, server.URL())}
	if err := migrations.Up(t.Context(), f.pool, f.schema); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.log, err = NewLog(LogConfig{Schema: f.schema}); err != nil {
		t.Fatal(err)
	}
	return server, f
}

// hurried is a pool whose commits do not wait for the disk.
func hurried(t *testing.T, address string) *pgxpool.Pool {
	return testkit.Pool(t, address, func(cfg *pgxpool.Config) {
		cfg.MaxConns = 8
		cfg.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	})
}

// Xids and ids whose log was not flushed are given out again after a
// crash. The relay's steps stand on flushed ones only, whether it notices the
// crash or a pool hides it.
func TestCrashOfTheServerWithUnflushedXids(t *testing.T) {
	t.Parallel()
	server, f := crashing(t)
	l := newLedger(f, 4)
	s := f.stepped("test")
	s.mayRepeat = nil // the server loses links that only move the position on
	ctx := t.Context()
	write := func(pool *pgxpool.Pool, key string) {
		t.Helper()
		if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return l.write(ctx, tx, key) }); err != nil {
			t.Fatal(err)
		}
	}
	reissued := 0
	for i, how := range []string{"unnoticed", "noticed", "another holder", "unnoticed", "in a round", "unnoticed", "between a round's steps", "behind a round's end", "unnoticed"} {
		pool := hurried(t, server.URL())
		// Ids that only the log's last page knows of: what Postgres has written,
		// flushed or not, outlives this crash.
		burn := func() {
			if _, err := pool.Exec(ctx, `SELECT nextval('`+f.table("outbox_id")+`') FROM generate_series(1, 80)`); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			write(pool, "a01")
			write(pool, "a02")
		}
		open, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.write(ctx, open, "a03"); err != nil {
			t.Fatal(err)
		}
		switch how {
		case "in a round": // which stands on what was read at the end of the one before
			if err := s.t.startRound(ctx, 0); err != nil {
				t.Fatal(err)
			}
			s.fill()
			s.deliver(1 << 30)
		case "between a round's steps":
			s.drain()
			burn()
			if err := s.t.chain.refresh(ctx); err != nil {
				t.Fatal(err)
			}
		case "behind a round's end":
			s.drain()
			if err := s.t.chain.start(ctx, 1<<40); err != nil { // of nothing new
				t.Fatal(err)
			}
			burn()
			if err := s.t.chain.finish(ctx); err != nil {
				t.Fatal(err)
			}
		default:
			s.drain()
		}
		if !strings.Contains(how, " a round") {
			for range 10 { // committed, not flushed, and not seen by the relay
				write(pool, "a02")
				write(pool, "a04")
			}
		}
		var xidBefore uint64
		if err := pool.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`).Scan(&xidBefore); err != nil {
			t.Fatal(err)
		}
		before := l.committed()

		server.KillBackendsCrash()

		_ = open.Rollback(ctx)
		f.pool = testkit.Pool(t, server.URL())
		s.shift.db.pool = f.pool // what the relay holds goes on, as behind PgBouncer
		s.t.db.pool = f.pool
		if f.count(`SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`) < int(xidBefore) {
			reissued++
		}
		lost := before - l.committed()
		switch how {
		case "noticed":
			s.reload()
		case "another holder":
			s.newHolder()
		case "in a round":
			s.reload()
		}
		pool = hurried(t, server.URL())
		// Open while the next round starts, with an xid and ids that were perhaps
		// given out before.
		again, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := l.write(ctx, again, "a04"); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Contains(how, " a round's ") {
			if err := s.t.startRound(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}
		s.drain()
		f.commit(again)
		for range 3 {
			write(pool, "a02")
			write(pool, "a03")
		}
		s.drain()
		for range 3 {
			write(pool, "a01")
		}
		s.drain()
		t.Logf("crash %d, %s: %d committed events lost by the server", i, how, lost)
		b := &broker{t: t}
		for _, it := range s.delivered {
			b.arrivals = append(b.arrivals, arrival{it.Key, numberOf(it.Payload), it.EventID})
		}
		if v := l.judge(b); v.lost != 0 || v.phantom != 0 || v.disorder != 0 {
			t.Fatalf("crash %d, %s: of %d events %d lost, %d published that the server forgot, %d aggregates out of order", i, how, v.events, v.lost, v.phantom, v.disorder)
		}
	}
	if reissued == 0 {
		t.Error("no crash made the server give out an xid again: this test shows nothing")
	}
}

// A relay at work outlives crashes and restarts of its server. The window does not
// bound the repeats here: links that only move the position on are not waited for,
// and this server leaves them unflushed for long.
func TestRelayOutlivesItsServersCrashes(t *testing.T) {
	t.Parallel()
	server, f := crashing(t)
	l := newLedger(f, 8)
	sink := newSink()
	cfg := f.config()
	cfg.Window = 100
	f.start(sink, cfg)
	pool := hurried(t, server.URL())
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writing sync.WaitGroup
	for range 4 {
		writing.Go(func() {
			for ctx.Err() == nil {
				// A server that is away refuses: that is no fault of the test's.
				_ = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					return l.write(ctx, tx, fmt.Sprintf("a%02d", 1+rand.IntN(8)))
				})
			}
		})
	}
	crashes := []func(){server.KillBackendsCrash, func() { server.CrashImmediate(); server.Start() }, server.KillBackendsCrash}
	for _, crash := range crashes {
		n := sink.distinct()
		testkit.Eventually(t, 30*time.Second, func() bool { return sink.distinct() > n+150 }, "events flow")
		crash()
	}
	n := sink.distinct()
	testkit.Eventually(t, 30*time.Second, func() bool { return sink.distinct() > n+150 }, "events flow after the last crash")
	stop()
	writing.Wait()
	f.pool = testkit.Pool(t, server.URL())
	total := l.committed()
	testkit.Eventually(t, 30*time.Second, func() bool { return sink.distinct() >= total }, "all %d events arrive", total)
	b := &broker{t: t}
	sink.mu.Lock()
	for _, d := range sink.got {
		b.arrivals = append(b.arrivals, arrival{d.Key, d.n, uuid.UUID(d.EventID)})
	}
	sink.mu.Unlock()
	v := l.judge(b)
	t.Logf("%d events, %d crashes, %d repeats", v.events, len(crashes), v.repeats)
	if v.lost != 0 || v.phantom != 0 || v.disorder != 0 {
		t.Errorf("of %d events %d lost, %d published that the server forgot, %d aggregates out of order", v.events, v.lost, v.phantom, v.disorder)
	}
}
