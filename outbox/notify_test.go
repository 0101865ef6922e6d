package outbox

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// ear is a connection that listens on a schema's channel, as a Listener does.
type ear struct {
	t    *testing.T
	f    *fixture
	conn *pgx.Conn
}

func (f *fixture) ear(t *testing.T, which testkit.Server) *ear {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), testkit.URL(t, which))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), `LISTEN `+pgx.Identifier{channelOf(f.schema)}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	return &ear{t, f, conn}
}

func (e *ear) next() *pgconn.Notification {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 20*time.Second)
	defer cancel()
	n, err := e.conn.WaitForNotification(ctx)
	if err != nil {
		e.t.Fatalf("no notification came: %v", err)
	}
	return n
}

// rest counts what has come until now: notifications come in the order of their commits.
func (e *ear) rest() (n int) {
	e.t.Helper()
	e.f.notify("the end")
	for e.next().Payload != "the end" {
		n++
	}
	return n
}

// notify sends what a process with that token would send.
func (f *fixture) notify(token string) {
	f.t.Helper()
	if _, err := f.pool.Exec(f.t.Context(), `SELECT pg_notify($1, $2)`, channelOf(f.schema), token); err != nil {
		f.t.Fatal(err)
	}
}

// startNotifier runs a notifier until the test ends or stop is called.
func (f *fixture) startNotifier(pool *pgxpool.Pool, cfg NotifierConfig) (stop func()) {
	f.t.Helper()
	cfg.Schema = f.schema
	n, err := NewNotifier(pool, cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	stop = f.run("notifier", n.Run)
	testkit.Eventually(f.t, 20*time.Second, func() bool {
		wakeups.Lock()
		defer wakeups.Unlock()
		return len(wakeups.notifiers[f.schema]) > 0
	}, "the notifier runs")
	return stop
}

// run runs something until the test ends or stop is called; an error fails the test.
func (f *fixture) run(what string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				f.t.Errorf("%s: %v", what, err)
			}
		case <-time.After(time.Minute):
			f.t.Errorf("%s: Run does not return", what)
		}
	})
	f.t.Cleanup(stop)
	return stop
}

// statements remembers what is sent over the connections that it traces.
type statements struct {
	mu   sync.Mutex
	list []statementSeen
}

type statementSeen struct {
	sql      string
	at       time.Time
	txStatus byte // of the connection, before it
}

func (s *statements) TraceQueryStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, statementSeen{d.SQL, time.Now(), conn.PgConn().TxStatus()})
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s *statements) with(part string) (found []statementSeen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.list {
		if strings.Contains(one.sql, part) {
			found = append(found, one)
		}
	}
	return found
}

// lines are the messages of a log.
type lines struct {
	slog.Handler
	mu   sync.Mutex
	said []string
}

func newLines(t testing.TB) *lines { return &lines{Handler: testLogger(t).Handler()} }

func (l *lines) Handle(ctx context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, r.Message)
	return l.Handler.Handle(ctx, r)
}

func (l *lines) count(message string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, said := range l.said {
		if strings.HasPrefix(said, message) {
			n++
		}
	}
	return n
}

// Many commits are few notifications, the first at once, the last not forgotten;
// so it is through PgBouncer.
func TestNotificationsAreCoalesced(t *testing.T) {
	for _, which := range []testkit.Server{testkit.PG15, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, which)
			e := f.ear(t, testkit.PG15)
			const every = 100 * time.Millisecond
			began := time.Now()
			stop := f.startNotifier(f.pool, NotifierConfig{Every: every})
			f.add("k", 1, 1)
			if n := e.next(); n.Payload != thisProcess {
				t.Fatalf("payload %q", n.Payload)
			}
			f.add("k", 2, 60)
			wake(f.schema)
			stop()
			if n, most := e.rest(), int(time.Since(began)/every)+1; n < 1 || n > most {
				t.Errorf("60 commits were told of by %d more notifications, want 1 to %d", n, most)
			}
		})
	}
}

// What is committed just before the stop is told of, too.
func TestNotifierTellsOfTheLastCommit(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.ear(t, testkit.PG15)
	stop := f.startNotifier(f.pool, NotifierConfig{Every: time.Hour})
	f.log.Wake()
	e.next()
	f.log.Wake()
	f.log.Wake()
	stop()
	if n := e.rest(); n != 1 {
		t.Errorf("%d notifications at the stop, want 1", n)
	}
}

// Neither a hint nor what another process has committed is told to others.
func TestNotifierTellsOfNothingElse(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	var sent statements
	pool := testkit.Postgres(t, testkit.PG15, func(c *pgxpool.Config) { c.ConnConfig.Tracer = &sent })
	stop := f.startNotifier(pool, NotifierConfig{})
	f.log.Hint()
	wakeForOthers(f.schema)
	stop()
	if found := sent.with("pg_notify"); len(found) > 0 {
		t.Errorf("%d notifications without a commit", len(found))
	}
}

func TestNotifierWaitsTroubleOut(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.ear(t, testkit.PG15)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	said := newLines(t)
	var sent statements
	stop := f.startNotifier(testkit.Pool(t, proxy.URL(), func(c *pgxpool.Config) { c.ConnConfig.Tracer = &sent }),
		NotifierConfig{DatabaseTimeout: 200 * time.Millisecond, Logger: slog.New(said)})
	const trouble, end = "other processes cannot be told", "other processes are told of commits again"
	for outage := 1; outage <= 2; outage++ {
		proxy.Refuse()
		proxy.CutAll()
		f.log.Wake()
		testkit.Eventually(t, 20*time.Second, func() bool { return said.count(trouble) == outage }, "the trouble is said")
		f.log.Wake()
		proxy.Resume()
		e.next() // although nothing was committed since
		testkit.Eventually(t, 20*time.Second, func() bool { return said.count(end) == outage }, "its end is said")
	}
	stop()
	if n := said.count(trouble); n != 2 {
		t.Errorf("the trouble was said %d times in two outages", n)
	}
}

func TestChannelNamesFit(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("s", 63)
	seen := map[string]string{}
	for _, schema := range []string{"postbus", "s", long, long[:62], long[:62] + "t", long[:50], long[:51]} {
		c := channelOf(schema)
		if len(c) > 63 || seen[c] != "" {
			t.Errorf("the channel of %q is %q, %d bytes, also that of %q", schema, c, len(c), seen[c])
		}
		seen[c] = schema
	}
	if c := channelOf("postbus"); c != "postbus.wake.postbus" {
		t.Errorf("the default schema's channel is %q", c)
	}
}

func TestNotifierConfigFaults(t *testing.T) {
	t.Parallel()
	_, err := NewNotifier(nil, NotifierConfig{Schema: "No", Every: -1, DatabaseTimeout: 1})
	wantFaults(t, err, "the pool is nil", "NotifierConfig.Schema", "NotifierConfig.Every", "NotifierConfig.DatabaseTimeout")
	_, err = NewListener(&pgx.ConnConfig{}, ListenerConfig{Schema: "No", Silence: -1, DatabaseTimeout: 1})
	wantFaults(t, err, "pgx.ParseConfig", "ListenerConfig.Schema", "ListenerConfig.Silence", "ListenerConfig.DatabaseTimeout")
	_, err = NewListener(nil, ListenerConfig{})
	wantFaults(t, err, "pgx.ParseConfig")
}

func wantFaults(t *testing.T, err error, parts ...string) {
	t.Helper()
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatalf("got %v", err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}
