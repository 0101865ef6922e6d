package outbox

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// runOn runs a relay on a pool until the test ends.
func runOn(t *testing.T, pool *pgxpool.Pool, s *sink, cfg RelayConfig) {
	t.Helper()
	relay, err := NewRelay(pool, s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("relay: %v", err)
		}
	})
}

// failsUntil refuses the even events of the keys that begin with bad, until it is
// mended: fewer keys than would be taken for an outage.
func failsUntil(mended *atomic.Bool) func(*Message, int) Result {
	return func(m *Message, n int) Result {
		if m.Key[:3] == "bad" && n%2 == 0 && !mended.Load() {
			return Result{Passing, errRefused}
		}
		return Result{Status: Done}
	}
}

// A relay that may have as many connections as it likes takes four at most, however
// much there is to do: a backlog, events that fail, are parked and come back, requests.
// A pool opens a connection only when none is idle, so it counts for us. A relay that
// stands by needs one.
func TestRelayUsesAtMostFourConnections(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, which)
			const each = 100
			good, bad := names("good", 30), names("bad", 10)
			f.backlog(each, append(good, bad...)...)
			plenty := func() *pgxpool.Pool {
				return testkit.As(t, testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.MaxConns = 20 }), testkit.Relay)
			}
			active, standby := plenty(), plenty()
			s, mended := newSink(), &atomic.Bool{}
			s.setRule(failsUntil(mended))
			cfg := f.config()
			cfg.Window, cfg.Batch, cfg.Retry.MaxAttempts = 300, 30, 1_000_000
			runOn(t, active, s, cfg)
			eventually(t, func() bool { return s.distinct() > 0 }, "it works")
			runOn(t, standby, newSink(), cfg)
			eventually(t, func() bool { return s.distinct() == len(good)*each+len(bad) }, "what does not fail is published")
			mended.Store(true)
			f.exec(`INSERT INTO ` + f.table("relay_request") + ` (relay, action, log_id) SELECT relay, 'replay', log_id FROM ` + f.table("parked"))
			eventually(t, func() bool { return s.distinct() == (len(good)+len(bad))*each }, "all is published")
			n := active.Stat().TotalConns()
			if t.Logf("the relay has opened %d connections", n); n > 4 {
				t.Errorf("the relay has opened %d connections, at most 4 are promised", n)
			}
			if n := standby.Stat().TotalConns(); n > 1 {
				t.Errorf("the relay that stands by has opened %d connections", n)
			}
		})
	}
}

// A relay on a pool that is too small waits for its turn, and so does the application
// on the same pool: neither starves, whatever the size, and the lease is not lost by it.
func TestRelayAndApplicationShareASmallPool(t *testing.T) {
	t.Parallel()
	for conns := int32(1); conns <= 4; conns++ {
		t.Run(fmt.Sprintf("%d connections", conns), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			small := testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) { cfg.MaxConns = conns })
			s, mended := newSink(), &atomic.Bool{}
			s.setRule(failsUntil(mended))
			cfg := f.config()
			cfg.Window, cfg.Batch, cfg.Retry.MaxAttempts = 50, 10, 1_000_000
			runOn(t, small, s, cfg)

			const writers, each = 4, 100
			var slowest atomic.Int64
			var all sync.WaitGroup
			for w := range writers {
				key := fmt.Sprint("bad", w)
				all.Go(func() {
					for n := range each {
						began := time.Now()
						err := pgx.BeginFunc(t.Context(), small, func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, event(key, n+1)) })
						if err != nil {
							t.Errorf("append: %v", err)
							return
						}
						f.log.Wake()
						slowest.Store(max(slowest.Load(), int64(time.Since(began))))
					}
				})
			}
			all.Wait()
			mended.Store(true)
			eventually(t, func() bool { return s.distinct() == writers*each }, "all is published")
			for w := range writers {
				s.inOrder(t, fmt.Sprint("bad", w), each)
			}
			if n := f.count(`SELECT count(DISTINCT holder) FROM ` + f.table("relay_link")); n != 1 {
				t.Errorf("the position has had %d holders", n)
			}
			if s.repeats > 0 {
				t.Errorf("%d repeats", s.repeats)
			}
			t.Logf("the application's slowest transaction took %s", time.Duration(slowest.Load()))
		})
	}
}

// An application that keeps all connections to itself for longer than the lease costs
// the relay its lease, and nothing else.
func TestRelayOutlivesAPoolThatIsUsedUp(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	small := testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) { cfg.MaxConns = 2 })
	s, cfg := newSink(), f.config()
	cfg.Lease = 400 * time.Millisecond
	runOn(t, small, s, cfg)
	f.add("k", 1, 1)
	eventually(t, func() bool { return s.distinct() == 1 }, "it works")
	var held []*pgxpool.Conn
	for range 2 {
		conn, err := small.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	f.add("k", 2, 4)
	eventually(t, func() bool {
		return f.count(`SELECT count(*) FROM `+f.table("relay_lease")+` WHERE expires < clock_timestamp()`) == 1
	}, "the lease has run out")
	for _, conn := range held {
		conn.Release()
	}
	eventually(t, func() bool { return s.distinct() == 5 }, "it goes on")
	s.inOrder(t, "k", 5)
}
