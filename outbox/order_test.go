package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

func init() { testkit.RegisterChild("relay to a broker", relayProcess) }

const (
	orderWindow = 200
	orderLease  = time.Second
)

// hearsSignals is said by a child that can be told to stop; before that, telling
// it would kill it.
const hearsSignals = "hears signals"

// relayProcess is a program with a relay in it: address, schema, broker.
func relayProcess(args []string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println(hearsSignals)
	config, err := pgxpool.ParseConfig(args[0])
	if err != nil {
		panic(err)
	}
	config.MaxConns = 4
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	relay, err := NewRelay(pool, &brokerClient{address: args[2]}, RelayConfig{
		Name: "ordered", Schema: args[1], Lease: orderLease, Window: orderWindow, PollInterval: 50 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid()),
	})
	if err != nil {
		panic(err)
	}
	if err := relay.Run(ctx); err != nil {
		panic(err)
	}
}

// The main promise, under everything that may happen at once. Not in parallel
// with other tests: two relays, thirty writers and a lease of a second need the
// machine.
func TestOrderWhileRelaysAreKilledAndFrozen(t *testing.T) {
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) { orderTest(t, which) })
	}
}

func orderTest(t *testing.T, which testkit.Server) {
	const writers = 30
	events, kills, freezes := 4000, 4, 3
	if long {
		events, kills, freezes = 40_000, 60, 30
	}
	f := setUp(t, which)
	l := newLedger(f, 50)
	b := newBroker(t)
	t.Cleanup(b.close) // after the children, which are started later, have gone

	c := &chaos{t: t, b: b, start: func() *testkit.Child {
		return testkit.StartChild(t, "relay to a broker", testkit.AddressOf(f.as(testkit.Relay)), f.schema, b.listener.Addr().String())
	}}
	c.children = []*testkit.Child{c.start(), c.start()}

	pool := testkit.As(t, testkit.Postgres(t, which, func(cfg *pgxpool.Config) {
		cfg.MaxConns = writers
		if which == testkit.PgBouncer {
			cfg.MaxConns = 20 // its own pool has 40 for all tests
		}
	}), testkit.App)
	// Writers end between two transactions: a COMMIT that was cancelled might still
	// happen after the events are counted.
	enough := make(chan struct{})
	stop := sync.OnceFunc(func() { close(enough) })
	defer stop()
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() { l.writer(t.Context(), enough, pool, w) })
	}
	deadline := time.Now().Add(4 * time.Minute)
	for c.kills < kills || c.freezes < freezes || l.committed() < events {
		if time.Now().After(deadline) {
			t.Fatalf("the load does not get on: %d kills, %d freezes, %d events", c.kills, c.freezes, l.committed())
		}
		c.strike(deadline)
	}
	stop()
	writing.Wait()

	total := l.committed()
	testkit.Eventually(t, 30*time.Second, func() bool { n, _, _ := b.state(); return n >= total }, "all %d events arrive", total)
	for _, child := range c.children {
		testkit.Eventually(t, 10*time.Second, func() bool { return strings.Contains(child.Output(), hearsSignals) }, "a child has begun")
		child.Signal(syscall.SIGTERM)
	}
	for _, child := range c.children {
		if err := child.Wait(10 * time.Second); err != nil {
			t.Errorf("a relay's clean stop: %v", err)
		}
	}
	v, takeovers := l.judge(b), l.takeovers()
	t.Logf("%d events, %d kills, %d freezes, %d take-overs: %d repeats", v.events, c.kills, c.freezes, takeovers, v.repeats)
	if v.lost != 0 || v.phantom != 0 || v.disorder != 0 {
		t.Errorf("%d lost, %d phantom, %d aggregates out of order", v.lost, v.phantom, v.disorder)
	}
	if v.repeats > orderWindow*takeovers {
		t.Errorf("%d repeats in %d take-overs with a window of %d", v.repeats, takeovers, orderWindow)
	}
}

// chaos kills and freezes the relays' processes, mostly the one that works.
type chaos struct {
	t              *testing.T
	b              *broker
	start          func() *testkit.Child
	children       []*testkit.Child
	kills, freezes int
}

// strike waits until the broker has got some more batches, and strikes.
func (c *chaos) strike(deadline time.Time) {
	_, before, _ := c.b.state()
	more := rand.IntN(80)
	c.wait(deadline, "batches come in", func() bool { _, n, _ := c.b.state(); return n > before+more })
	_, _, active := c.b.state()
	i := slices.IndexFunc(c.children, func(ch *testkit.Child) bool { return ch.PID() == active })
	if i < 0 || rand.IntN(5) == 0 {
		i = rand.IntN(len(c.children))
	}
	if victim := c.children[i]; rand.IntN(2) == 0 {
		victim.Kill9()
		c.children[i] = c.start()
		c.kills++
	} else {
		victim.Stop()
		if victim.PID() == active {
			c.wait(deadline, "the other relay takes over", func() bool { _, _, from := c.b.state(); return from != active })
		}
		victim.Cont()
		c.freezes++
	}
}

func (c *chaos) wait(deadline time.Time, what string, cond func() bool) {
	c.t.Helper()
	testkit.Eventually(c.t, time.Until(deadline), func() bool { return cond() || c.t.Failed() }, what)
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// writer is one of many: a fifth of its transactions end in a rollback, half of
// them have an xid before they lock their aggregate.
func (l *ledger) writer(ctx context.Context, enough <-chan struct{}, pool *pgxpool.Pool, number int) {
	undo := errors.New("the user changed their mind")
	for {
		select {
		case <-enough:
			return
		default:
		}
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if rand.IntN(2) == 0 {
				if _, err := tx.Exec(ctx, `INSERT INTO `+l.f.table("elsewhere")+` DEFAULT VALUES`); err != nil {
					return err
				}
			}
			if number == 0 && rand.IntN(2) == 0 { // slow before its locks
				if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, 0.5+rand.Float64()); err != nil {
					return err
				}
			}
			keys := []string{fmt.Sprintf("a%02d", 1+rand.IntN(50))}
			for rand.IntN(10) == 0 {
				keys = append(keys, fmt.Sprintf("a%02d", 1+rand.IntN(50)))
			}
			slices.Sort(keys)
			for _, key := range slices.Compact(keys) {
				if _, err := tx.Exec(ctx, `SELECT FROM `+l.f.table("aggregate")+` WHERE key = $1 FOR UPDATE`, key); err != nil {
					return err
				}
				if err := l.steps(ctx, tx, key, undo); err != nil {
					return err
				}
			}
			if number == 0 { // and slow with them
				if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, 1+rand.Float64()); err != nil {
					return err
				}
			}
			if rand.IntN(5) == 0 {
				return undo
			}
			return nil
		})
		if err != nil && !errors.Is(err, undo) {
			l.f.t.Errorf("writer %d: %v", number, err)
			return
		}
	}
}

// steps writes one to three events of a key, some in savepoints, some of which
// are rolled back.
func (l *ledger) steps(ctx context.Context, tx pgx.Tx, key string, undo error) error {
	for range 1 + rand.IntN(3) {
		if rand.IntN(3) > 0 {
			if err := l.write(ctx, tx, key); err != nil {
				return err
			}
			continue
		}
		keep := rand.IntN(2) == 0
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			if err := l.write(ctx, tx, key); err != nil {
				return err
			}
			if !keep {
				return undo
			}
			return nil
		})
		if err != nil && (keep || !errors.Is(err, undo)) {
			return err
		}
	}
	return nil
}
