package outbox

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// One holder at a time, by the database's clock; an expired lease is
// taken, not renewed; one that is given up is free at once.
func TestLeaseHasOneHolder(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
		holder := func(length time.Duration) *lease {
			return newLease(f.database(), owner{kindRelay, "test"}, allSlots, uuid.New(), length)
		}
		is := func(want bool) func(bool, error) {
			return func(got bool, err error) {
				t.Helper()
				if err != nil || got != want {
					t.Fatalf("%v, want %v (error %v)", got, want, err)
				}
			}
		}
		a, b := holder(time.Hour), holder(time.Hour)
		is(false)(a.renew(t.Context())) // nobody has it
		is(true)(a.take(t.Context()))
		if left := a.left(); left <= 59*time.Minute || left > time.Hour {
			t.Errorf("%s left of a lease of an hour", left)
		}
		is(false)(b.take(t.Context()))
		is(false)(b.renew(t.Context()))
		if b.left() > 0 {
			t.Error("a lease that was refused counts as held")
		}
		is(true)(a.renew(t.Context()))
		is(true)(a.take(t.Context())) // its own
		if err := b.giveUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		is(false)(b.take(t.Context())) // not b's to give up
		if err := a.giveUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		is(false)(a.renew(t.Context()))
		is(true)(b.take(t.Context()))
		is(false)(a.take(t.Context()))

		// It runs out: whoever comes takes it, and the former holder cannot renew.
		f.exec(`UPDATE ` + f.table("relay_lease") + ` SET expires = clock_timestamp() - interval '1 ms'`)
		is(false)(b.renew(t.Context()))
		is(true)(a.take(t.Context()))
		is(false)(b.take(t.Context()))
	})
}

// A holder that cannot reach the database stops to believe in its lease before
// the database lets another take it.
func TestLeaseEndsInTheProcessFirst(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	db := f.database()
	db.pool = testkit.Pool(t, proxy.URL())
	ours := newLease(db, owner{kindRelay, "test"}, allSlots, uuid.New(), time.Second)
	if ok, err := ours.take(t.Context()); !ok || err != nil {
		t.Fatal(ok, err)
	}
	proxy.Stall()
	lost := async(func() error { return ours.keep(context.Background()) })
	other := newLease(f.database(), owner{kindRelay, "test"}, allSlots, uuid.New(), time.Second)
	testkit.Eventually(t, 10*time.Second, func() bool {
		ok, err := other.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if left := ours.left(); ok && left > 0 {
			t.Fatalf("another has the lease, and %s of ours are left", left)
		}
		return ok
	}, "the lease runs out")
	proxy.CutAll()
	if err := <-lost; err != errLeaseLost {
		t.Errorf("the holder hears %v, want errLeaseLost", err)
	}
}

// A clean stop hands over at once, with nothing to repeat.
func TestCleanStopHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, cfg := newSink(), f.config()
	cfg.Lease = time.Hour // what waits for its end waits in vain
	stop := f.start(s, cfg)
	f.add("k", 1, 20)
	testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == 20 }, "the first relay works")
	f.start(s, cfg)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	f.add("k", 21, 20)
	testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == 40 }, "the second relay works")
	s.inOrder(t, "k", 40)
	if s.repeats != 0 {
		t.Errorf("%d repeats after a clean stop", s.repeats)
	}
}

// canceller ends a context when a statement has been answered.
type canceller struct {
	after  string
	cancel context.CancelFunc
}

type cancelKey struct{}

func (c *canceller) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, cancelKey{}, strings.HasPrefix(d.SQL, c.after))
}

func (c *canceller) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if match, _ := ctx.Value(cancelKey{}).(bool); match {
		c.cancel()
	}
}

// A stop in the very moment in which the lease is taken gives it up too.
func TestStopWhileTheLeaseIsTaken(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	ctx, cancel := context.WithCancel(t.Context())
	c := &canceller{`INSERT INTO ` + f.table("relay_lease"), cancel}
	pool := testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = c })
	cfg := f.config()
	cfg.Lease = time.Hour
	relay, err := NewRelay(pool, newSink(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := relay.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if n := f.count(`SELECT count(*) FROM ` + f.table("relay_lease") + ` WHERE expires > clock_timestamp()`); n != 0 {
		t.Error("the lease of a relay that has stopped keeps the others waiting")
	}
}
