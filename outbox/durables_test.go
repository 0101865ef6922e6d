package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// Twenty handlers on a pool of their own, ten of which hang again and again: no more
// connections than were asked for, all leases hold, the other ten get on, and the
// application's own two connections are free.
func TestManyDurableHandlersOnFewConnections(t *testing.T) {
	t.Parallel()
	const connections = 5
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	name := "durables_" + f.schema
	f.as(testkit.Relay)
	pool := testkit.As(t, testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) {
		cfg.MaxConns = 2
		cfg.ConnConfig.RuntimeParams["application_name"] = name
	}), testkit.Relay)
	f.backlog(3, "a")
	var ds []*Durable
	lost := make(chan string, 100)
	for i := range 20 {
		cfg := f.durableConfig(fmt.Sprint("h", i))
		cfg.Lease, cfg.HandlerTimeout = 3*time.Second, 200*time.Millisecond
		cfg.Hooks.LeaseLost = func(l LeaseInfo) { lost <- l.Name }
		cfg.Retry.Initial, cfg.Retry.Max = time.Millisecond, time.Millisecond
		cfg.Retry.MaxAttempts = 1_000_000
		handle := DurableFunc(e.book)
		if i%2 == 1 {
			handle = func(ctx context.Context, _ *Tx, _ *Message) error { <-ctx.Done(); return ctx.Err() }
		}
		d, err := NewDurable(pool, handle, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ds = append(ds, d)
	}
	stop := f.run("durable handlers", func(ctx context.Context) error { return RunDurables(ctx, pool, connections, ds...) })
	most := 0
	testkit.Eventually(t, 60*time.Second, func() bool {
		most = max(most, f.count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, name))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := pool.Ping(ctx); err != nil {
			t.Fatalf("the application finds no connection: %v", err)
		}
		return e.count() == 30
	}, "those that do not hang get on")
	if most > connections+2 {
		t.Errorf("%d connections, want %d and 2 of the application", most, connections)
	}
	if n := f.count(`SELECT count(*) FROM ` + f.table("relay_lease") + ` WHERE expires > clock_timestamp()`); n != 20 {
		t.Errorf("%d leases hold", n)
	}
	select {
	case who := <-lost:
		t.Errorf("%s has lost its lease", who)
	default:
	}
	ds[0].Stop() // one of them
	eventually(t, func() bool {
		return f.count(`SELECT count(*) FROM `+f.table("relay_lease")+` WHERE relay = 'h0' AND expires > clock_timestamp()`) == 0
	}, "one is stopped")
	f.add("a", 4, 1)
	testkit.Eventually(t, 60*time.Second, func() bool { return e.count() == 39 }, "the others go on")
	stop()
	eventually(t, func() bool {
		return f.count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, name) <= 2
	}, "their pool is closed")
}

func TestRunDurablesRefusesAndEnds(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	one := func(name string) *Durable {
		d, err := NewDurable(f.as(testkit.Relay), e.book, f.durableConfig(name))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	err := RunDurables(t.Context(), nil, 2, one("a"), one("b"), one("a"))
	for _, want := range []string{"nil", "at least 3", `two of them are named "a"`} {
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in %v", want, err)
		}
	}
	if err := RunDurables(t.Context(), f.pool, 0); !errors.Is(err, ErrInvalidConfig) {
		t.Errorf("none: %v", err)
	}
	// One that cannot go on stops the others, whose end is clean.
	f.known("b", kindRelay)
	if err := RunDurables(t.Context(), f.as(testkit.Relay), 0, one("a"), one("b"), one("c")); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a name that is taken: %v", err)
	}
}

// A stop lets the handler under way return; one that does not is left to the next
// holder, and no attempt is counted.
func TestDurableHandlerStops(t *testing.T) {
	t.Parallel()
	for _, drains := range []bool{true, false} {
		t.Run(fmt.Sprint("drains ", drains), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			e := f.effectsTable()
			inside, goOn := make(chan struct{}, 10), make(chan struct{})
			cfg := f.durableConfig("test")
			cfg.DrainTimeout, cfg.Lease = 10*time.Second, 20*time.Second
			if !drains {
				cfg.DrainTimeout = 100 * time.Millisecond
			}
			f.backlog(3, "a")
			d, err := NewDurable(f.as(testkit.Relay), func(ctx context.Context, tx *Tx, m *Message) error {
				inside <- struct{}{}
				select {
				case <-goOn:
				case <-ctx.Done():
					return ctx.Err()
				}
				return e.book(ctx, tx, m)
			}, cfg)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- d.Run(t.Context()) }()
			<-inside
			d.Stop()
			if drains {
				close(goOn)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			want := 0
			if drains {
				want = 1
			}
			if n := e.count(); n != want {
				t.Errorf("%d effects, want %d", n, want)
			}
			if n := f.count(`SELECT count(*) FROM ` + f.table("parked")); n != 0 {
				t.Errorf("%d events were put aside by a stop", n)
			}
			if err := d.Run(t.Context()); err != nil { // at once: it is stopped for good
				t.Error(err)
			}
			f.durable(e.book, cfg) // which need not wait for the lease to run out
			e.reaches(3)
			e.expectUpTo(3, "a")
		})
	}
}
