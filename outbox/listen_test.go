package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// hearing is a Listener that runs, and what its process heard through it.
type hearing struct {
	f    *fixture
	name string // application_name of its connections
	said *lines
	stop func()
}

func (f *fixture) listen(t *testing.T, address string, change func(*pgx.ConnConfig, *ListenerConfig)) *hearing {
	t.Helper()
	h := &hearing{f: f, name: "listener of " + f.schema[:min(40, len(f.schema))], said: newLines(t)}
	l := h.listener(t, address, change)
	before := commits(f.schema)
	h.stop = f.run("listener", l.Run)
	h.more(t, before, "the listener has connected")
	return h
}

func (h *hearing) listener(t *testing.T, address string, change func(*pgx.ConnConfig, *ListenerConfig)) *Listener {
	t.Helper()
	conn, err := pgx.ParseConfig(address)
	if err != nil {
		t.Fatal(err)
	}
	conn.RuntimeParams["application_name"] = h.name
	cfg := ListenerConfig{Schema: h.f.schema, Logger: slog.New(h.said)}
	if change != nil {
		change(conn, &cfg)
	}
	l, err := NewListener(conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// more waits until relays were woken for a commit again.
func (h *hearing) more(t *testing.T, before uint64, what string) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, func() bool { return commits(h.f.schema) > before }, "%s", what)
}

// connections are those of the listener that the server has.
func (h *hearing) connections() int {
	return h.f.count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, h.name)
}

func TestListenerWakesTheRelaysOfItsProcess(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	h := f.listen(t, testkit.URL(t, testkit.PG15), func(c *pgx.ConnConfig, _ *ListenerConfig) {
		c.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) { t.Error("a pool's own hook was called") }
	})
	stop := f.startNotifier(f.pool, NotifierConfig{})
	e := f.ear(t, testkit.PG15)
	wakeC, unlisten := listenWake(f.schema)
	defer unlisten()

	before := commits(f.schema)
	f.notify("another process")
	h.more(t, before, "it was told of the commit of another process")
	<-wakeC
	f.notify(thisProcess) // its relays know
	f.notify("another process")
	h.more(t, before+1, "it was told again")
	if n := commits(f.schema) - before; n != 2 {
		t.Errorf("%d signals for two commits of other processes and one of its own", n)
	}
	stop()
	if n := e.rest(); n != 3 {
		t.Errorf("%d notifications: what was heard has been passed on", n)
	}
	h.stop()
	testkit.Eventually(t, 20*time.Second, func() bool { return h.connections() == 0 }, "its connection is closed")
}

// A connection that the server ends is made anew, said once, and what was missed
// is looked for.
func TestListenerOutlivesItsConnection(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	h := f.listen(t, testkit.URL(t, testkit.PG15), nil)
	for range 2 {
		before := commits(f.schema)
		if n := f.count(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1`, h.name); n != 1 {
			t.Fatalf("%d connections instead of one", n)
		}
		h.more(t, before, "the relays look for what was missed")
		f.notify("another process")
		h.more(t, before+1, "it is told of commits again")
	}
	if lost, again := h.said.count("not listening"), h.said.count("listening for the commits of other processes again"); lost != 2 || again != 2 {
		t.Errorf("two losses were said %d times, their ends %d times", lost, again)
	}
}

// A connection that is dead without a word is found by its silence.
func TestListenerFindsADeadConnection(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	h := f.listen(t, proxy.URL(), func(_ *pgx.ConnConfig, cfg *ListenerConfig) {
		cfg.Silence, cfg.DatabaseTimeout = 100*time.Millisecond, time.Second
	})
	before := commits(f.schema)
	proxy.Stall()
	testkit.Eventually(t, 20*time.Second, func() bool { return h.said.count("not listening") == 1 }, "the loss is noticed")
	proxy.Resume()
	h.more(t, before, "it has connected anew")
	f.notify("another process")
	h.more(t, before+1, "it is told of commits again")
}

// The first connection, too, is waited for.
func TestListenerWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	proxy.Refuse()
	h := &hearing{f: f, name: "late", said: newLines(t)}
	before := commits(f.schema)
	var tries atomic.Int32
	f.run("listener", h.listener(t, proxy.URL(), func(c *pgx.ConnConfig, _ *ListenerConfig) {
		dial := c.DialFunc
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			tries.Add(1)
			return dial(ctx, network, addr)
		}
	}).Run)
	testkit.Eventually(t, 20*time.Second, func() bool { return tries.Load() > 3 }, "it tries again and again")
	if n := h.said.count("not listening"); n != 1 {
		t.Errorf("the trouble was said %d times", n)
	}
	proxy.Resume()
	h.more(t, before, "it has connected")
}

// In transaction mode notifications are lost; what passes them on is no obstacle.
func TestListenerRefusesPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PgBouncer)
	h := &hearing{f: f, name: "refused", said: newLines(t)}
	l := h.listener(t, testkit.URL(t, testkit.PgBouncer), func(_ *pgx.ConnConfig, cfg *ListenerConfig) { cfg.DatabaseTimeout = time.Second })
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err := l.Run(ctx)
		if !errors.Is(err, ErrNotDirect) {
			t.Fatalf("got %v", err)
		}
		t.Log(err)
	}
	direct := h.listener(t, testkit.URL(t, testkit.PG15), nil)
	conn, err := direct.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer direct.close(t.Context(), conn)
	if err := direct.tryNotification(t.Context(), conn); err != nil {
		t.Errorf("a connection that passes notifications on: %v", err)
	}
	if pid, err := direct.backend(t.Context(), conn); err != nil || pid != int64(conn.PgConn().PID()) {
		t.Errorf("a direct connection is served by %d, and says %d; %v", pid, conn.PgConn().PID(), err)
	}
}

func init() { testkit.RegisterChild("process that commits", childThatCommits) }

// commitSpec is what a process is told that commits one event for each SIGUSR1,
// and says when each was committed.
type commitSpec struct {
	Database, Schema string
	Notify           bool
}

func childThatCommits(args []string) {
	var spec commitSpec
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	must(json.Unmarshal([]byte(args[0]), &spec))
	ctx := context.Background()
	asked := make(chan os.Signal, 100)
	signal.Notify(asked, syscall.SIGUSR1)
	pool, err := pgxpool.New(ctx, spec.Database)
	must(err)
	log, err := NewLog(LogConfig{Schema: spec.Schema})
	must(err)
	if spec.Notify {
		notifier, err := NewNotifier(pool, NotifierConfig{Schema: spec.Schema})
		must(err)
		go notifier.Run(ctx)
	}
	must(pool.Ping(ctx))
	fmt.Println("ready")
	for n := 1; ; n++ {
		<-asked
		must(pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return log.Append(ctx, tx, event("k", n)) }))
		at := time.Now()
		log.Wake()
		fmt.Printf("committed %d %d\n", n, at.UnixNano())
	}
}

func (f *fixture) otherProcess(t *testing.T, notify bool) *testkit.Child {
	t.Helper()
	spec, err := json.Marshal(commitSpec{testkit.URL(t, testkit.PG15), f.schema, notify})
	if err != nil {
		t.Fatal(err)
	}
	child := testkit.StartChild(t, "process that commits", string(spec))
	testkit.Eventually(t, 20*time.Second, func() bool { return strings.Contains(child.Output(), "ready") }, "the other process runs")
	return child
}

// The whole way, from a commit in another process to the publisher, by a relay that
// sleeps: it looks before it would have by itself. The listener sends nothing.
func TestCommitOfAnotherProcessWakesTheRelay(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	var relays, listeners statements
	pool := testkit.Postgres(t, testkit.PG15, func(c *pgxpool.Config) { c.ConnConfig.Tracer = &relays })
	f.listen(t, testkit.URL(t, testkit.PG15), func(c *pgx.ConnConfig, _ *ListenerConfig) { c.Tracer = &listeners })
	child := f.otherProcess(t, true)
	s := newSink()
	cfg := f.config()
	cfg.PollInterval, cfg.Lease = time.Hour, 10*time.Second
	(&fixture{t: t, schema: f.schema, pool: pool, log: f.log}).start(s, cfg)

	looks := func() []statementSeen { return relays.with("pg_sequence_last_value") }
	// A relay's looks come 25, 50, 100 ms apart and so on: the last pause was a second.
	rested := func() bool {
		l := looks()
		return len(l) > 1 && l[len(l)-1].at.Sub(l[len(l)-2].at) > time.Second
	}
	for n := 1; ; n++ {
		testkit.Eventually(t, 20*time.Second, rested, "the relay sleeps for longer and longer")
		l := looks()
		last, pause := l[len(l)-1].at, l[len(l)-1].at.Sub(l[len(l)-2].at)
		child.Signal(syscall.SIGUSR1)
		testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == n }, "event %d is published", n)
		if early := looks()[len(l)].at.Sub(last); early < pause { // by itself: 2 * (0.8 to 1.2)/(0.8 to 1.2), so 1.33 pauses at least
			break
		}
		if n == 5 {
			t.Fatal("five times the relay looked only when its pause was over")
		}
	}
	if n := len(listeners.with("")); n != 2 { // pg_backend_pid, LISTEN
		t.Errorf("the listener has sent %d statements", n)
	}
}

// What another process commits is published within (POSTBUS_MEASURE=1 prints it).
func TestMeasureWakeupFromAnotherProcess(t *testing.T) {
	if os.Getenv("POSTBUS_MEASURE") == "" {
		t.Skip("a measurement, and no test: set POSTBUS_MEASURE=1")
	}
	for _, notified := range []bool{true, false} {
		f := setUp(t, testkit.PG15)
		measureWakeup(t, f, notified)
	}
}
