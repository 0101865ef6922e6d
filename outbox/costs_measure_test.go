package outbox

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// TestMeasureCosts prints what an event of 600 bytes costs: bytes of table, index and
// WAL, statements, tuples and pages of PostgreSQL, and CPU on both sides; for appends,
// relays and durable handlers. It has a server of its own, so that all but the CPU is
// the same on every machine, however busy it is. It takes about a minute:
//
//	POSTBUS_MEASURE=1 go test -run TestMeasureCosts -v ./outbox
func TestMeasureCosts(t *testing.T) {
	if os.Getenv("POSTBUS_MEASURE") == "" {
		t.Skip("it measures, and proves nothing: POSTBUS_MEASURE=1")
	}
	c := newCosts(t)
	t.Log(costsHead)
	c.appends(3000, 1)
	c.appends(3000, 10)
	c.appends(50_000, 500)
	c.checkpoints()
	c.drains(50_000)
	c.rounds(300)
	c.handles(2000, 1)
	c.handles(50_000, 100)
	c.idles(10 * time.Second)
}

// costs is a server, and what it has done since the last reset.
type costs struct {
	t    *testing.T
	f    *fixture
	look *pgx.Conn // whose own doings do not count
	sent *sentStatements
	next int
}

func newCosts(t *testing.T) *costs {
	server := testkit.PrivatePostgres(t, "shared_buffers=512MB", "max_wal_size=8GB", "checkpoint_timeout=1h", "autovacuum=off",
		"shared_preload_libraries=pg_stat_statements", "pg_stat_statements.track_utility=on", "track_io_timing=off")
	sent := &sentStatements{}
	f := &fixture{t: t, schema: "costs", pool: testkit.Pool(t, server.URL(), func(c *pgxpool.Config) { c.ConnConfig.Tracer = sent })}
	if err := migrations.Up(t.Context(), f.pool, f.schema); err != nil {
		t.Fatal(err)
	}
	f.exec(`CREATE EXTENSION pg_stat_statements`)
	var err error
	if f.log, err = NewLog(LogConfig{Schema: f.schema}); err != nil {
		t.Fatal(err)
	}
	look, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { look.Close(context.Background()) })
	return &costs{t: t, f: f, look: look, sent: sent}
}

// event is one whose document has 600 bytes, of one of 5,000 keys.
func (c *costs) event() events.DomainEvent {
	c.next++
	e := event(fmt.Sprintf("order-%08d", c.next%5000), 1)
	b, err := c.f.log.encode(nil, &e)
	if err != nil {
		c.t.Fatal(err)
	}
	e.Data = append(append([]byte(`{"n":"`), bytes.Repeat([]byte("x"), 600-len(b)+len(e.Data)-len(`{"n":""}`))...), `"}`...)
	return e
}

func (c *costs) events(n int) []events.DomainEvent {
	all := make([]events.DomainEvent, n)
	for i := range all {
		all[i] = c.event()
	}
	return all
}

// appends n events, so many in a transaction, in one call.
func (c *costs) appends(n, per int) {
	c.f.exec(`TRUNCATE ` + c.f.table("outbox"))
	var calls [][]events.DomainEvent
	for range n / per {
		calls = append(calls, c.events(per))
	}
	app := c.f.as(testkit.App)
	c.measure(fmt.Sprintf("append, %d a transaction", per), n, testkit.App, func() {
		for _, evs := range calls {
			if err := pgx.BeginFunc(c.t.Context(), app, func(tx pgx.Tx) error { return c.f.log.Append(c.t.Context(), tx, evs...) }); err != nil {
				c.t.Fatal(err)
			}
		}
	})
	size := func(of string) float64 {
		return float64(c.f.count(`SELECT pg_relation_size('`+c.f.schema+`.`+of+`')`)) / float64(n)
	}
	c.t.Logf("%-34s bytes of an event in table outbox %.0f, outbox_pkey %.1f, outbox_xid_id %.1f", "", size("outbox"), size("outbox_pkey"), size("outbox_xid_id"))
}

// checkpoints tells what whole pages cost that are written once after each checkpoint.
func (c *costs) checkpoints() {
	for _, per := range []int{1, 500} {
		evs := [][]events.DomainEvent{c.events(per), c.events(per), c.events(per)}
		c.f.exec(`CHECKPOINT`)
		wal := make([]int64, len(evs))
		for i := range evs {
			before := c.wal()
			c.f.tx(func(tx pgx.Tx) error { return c.f.log.Append(c.t.Context(), tx, evs[i]...) })
			wal[i] = c.wal() - before
		}
		c.t.Logf("%-34s bytes of WAL of the first transaction %d, of the second %d, of the third %d", fmt.Sprintf("after a checkpoint, %d a transaction", per), wal[0], wal[1], wal[2])
	}
}

// swallow is a broker that takes everything and looks at nothing.
type swallow struct {
	left chan struct{} // closed when it has had so many
	n    int
	gone chan int
}

func newSwallow(n int) *swallow {
	s := &swallow{left: make(chan struct{}), n: n, gone: make(chan int, 100_000)}
	go func() {
		for n > 0 {
			n -= <-s.gone
		}
		close(s.left)
	}()
	return s
}

func (s *swallow) PublishBatch(_ context.Context, msgs []*Message, results []Result) {
	for i := range results {
		results[i].Status = Done
	}
	s.gone <- len(msgs)
}
func (s *swallow) BatchContract() BatchContract { return BatchContract{StopsKeyAtFirstFailure: true} }
func (s *swallow) Publish(string, ...*message.Message) error {
	panic("the relay prefers the batch call")
}
func (s *swallow) Close() error { return nil }

// drains a backlog, in one round.
func (c *costs) drains(n int) {
	c.refill(n)
	c.measure("a relay drains a backlog", n, testkit.Relay, func() {
		s := newSwallow(n)
		stop := c.f.start(s, RelayConfig{Name: "drain", Schema: c.f.schema, Logger: quiet})
		<-s.left
		eventually(c.t, func() bool {
			return c.f.count(`SELECT count(*) FROM `+c.f.table("relay_link")+` WHERE relay = 'drain' AND last_id >= (SELECT max(id) FROM `+c.f.table("outbox")+`)`) > 0
		}, "the round is finished")
		if err := stop(); err != nil {
			c.t.Fatal(err)
		}
	})
}

// rounds of one event each, as a relay has them that keeps up with a few events a second.
func (c *costs) rounds(n int) {
	s := c.f.stepped("rounds", func(r *RelayConfig) { r.StartAt, r.Logger = FromNow, quiet })
	round := func() { c.f.tx(func(tx pgx.Tx) error { return c.f.log.Append(c.t.Context(), tx, c.event()) }) }
	drained := func() int64 { before := c.wal(); s.drain(); return c.wal() - before }
	var wal int64
	c.measure("a relay, one event a round", n, testkit.Relay, func() {
		for range n {
			round()
			wal += drained()
		}
	})
	c.t.Logf("%-34s bytes of WAL of the round alone, an event %.0f", "", float64(wal)/float64(n))
	s.stop()
}

// handles events in a durable handler that does nothing, so many in a transaction.
func (c *costs) handles(n, batch int) {
	c.refill(n)
	c.measure(fmt.Sprintf("a durable handler, %d a transaction", batch), n, testkit.Relay, func() {
		done, seen := make(chan struct{}), 0
		stop := c.f.durable(func(context.Context, *Tx, *Message) error {
			if seen++; seen == n {
				close(done)
			}
			return nil
		}, DurableConfig{Name: fmt.Sprint("durable.", batch), Schema: c.f.schema, Batch: batch, Logger: quiet})
		<-done
		if err := stop(); err != nil {
			c.t.Fatal(err)
		}
	})
}

// idles: nobody appends, and a relay looks.
func (c *costs) idles(d time.Duration) {
	s := newSwallow(1 << 40)
	stop := c.f.start(s, RelayConfig{Name: "idle", Schema: c.f.schema, StartAt: FromNow, Logger: quiet})
	pause := time.NewTimer(5 * time.Second) // looks come closer together after a round, and one tidies up
	<-pause.C
	c.reset(false)
	before := c.wal()
	pause.Reset(d)
	<-pause.C
	wal := c.wal() - before
	calls, _, _ := c.statements(testkit.Relay)
	c.t.Logf("%-34s statements a second %.1f, bytes of WAL a second %.0f (renewals of the lease)", "an idle relay", calls/d.Seconds(), float64(wal)/d.Seconds())
	if err := stop(); err != nil {
		c.t.Fatal(err)
	}
}

var quiet = slog.New(slog.DiscardHandler)

// refill has the log hold n events, as vacuum leaves them.
func (c *costs) refill(n int) {
	c.f.exec(`TRUNCATE ` + c.f.table("outbox"))
	for range n / 500 {
		c.f.tx(func(tx pgx.Tx) error { return c.f.log.Append(c.t.Context(), tx, c.events(500)...) })
	}
	c.f.exec(`VACUUM ANALYZE ` + c.f.table("outbox"))
}

const costsHead = `each line: per event, unless it says otherwise
  statements: those of the role, BEGIN and COMMIT included. pages: found in PostgreSQL's buffers, or read.
  tuples: written, of all tables of the schema. dead: of them or others, no longer of use.
  CPU: microseconds of this program, and of the sessions of PostgreSQL that it uses.`

// measure tells what do costs, which is about n events. The statements are those of a role.
func (c *costs) measure(what string, n int, role testkit.Role, do func()) {
	c.t.Helper()
	c.reset(true)
	wal, cpu := c.wal(), ownCPU()
	do()
	wal, cpu = c.wal()-wal, ownCPU()-cpu
	sessions := c.sessionsCPU()
	c.quit()
	calls, trips, pages := c.statements(role)
	var written, dead float64
	c.get(`SELECT sum(n_tup_ins + n_tup_upd), sum(n_dead_tup) FROM pg_stat_user_tables WHERE schemaname = $1`, []any{c.f.schema}, &written, &dead)
	per := func(v float64) string { return fmt.Sprintf("%.4g", v/float64(n)) }
	c.t.Logf("%-34s WAL %s, statements %s in %s round trips, pages %s, tuples %s, dead %s, CPU %s + %s", what, per(float64(wal)), per(calls), per(trips), per(pages),
		per(written), per(dead), per(float64(cpu.Nanoseconds())/1e3), per(float64(sessions.Nanoseconds())/1e3))
}

// sentStatements counts what programs send, by role. What the server counts leaves out
// the BEGIN and COMMIT of prepared statements, and this the COPY that goes past pgx.
type sentStatements struct {
	mu           sync.Mutex
	calls, trips map[testkit.Role]float64
}

func (s *sentStatements) add(conn *pgx.Conn, calls, trips float64) {
	role := testkit.Role(conn.Config().RuntimeParams["role"])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls == nil {
		s.calls, s.trips = map[testkit.Role]float64{}, map[testkit.Role]float64{}
	}
	s.calls[role] += calls
	s.trips[role] += trips
}

func (s *sentStatements) TraceQueryStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.add(conn, 1, 1)
	return ctx
}
func (s *sentStatements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (s *sentStatements) TraceBatchStart(ctx context.Context, conn *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	if n := d.Batch.Len(); n > 0 {
		s.add(conn, float64(n), 1)
	}
	return ctx
}
func (s *sentStatements) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (s *sentStatements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// reset begins to count anew; all: with sessions that have done nothing yet.
func (c *costs) reset(all bool) {
	c.t.Helper()
	if all {
		c.quit()
		if _, err := c.look.Exec(c.t.Context(), `SELECT pg_stat_reset()`); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.look.Exec(c.t.Context(), `SELECT pg_stat_statements_reset()`); err != nil {
		c.t.Fatal(err)
	}
	c.sent.mu.Lock()
	c.sent.calls, c.sent.trips = nil, nil
	c.sent.mu.Unlock()
}

// quit ends the sessions, which then tell what they have counted.
func (c *costs) quit() {
	c.t.Helper()
	for _, pool := range []*pgxpool.Pool{c.f.pool, c.f.as(testkit.App), c.f.as(testkit.Relay)} {
		pool.Reset()
	}
	eventually(c.t, func() bool { return len(c.sessions()) == 0 }, "all sessions have ended")
}

func (c *costs) get(sql string, args []any, into ...any) {
	c.t.Helper()
	if err := c.look.QueryRow(c.t.Context(), sql, args...).Scan(into...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *costs) wal() (at int64) {
	c.t.Helper()
	c.get(`SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint`, nil, &at)
	return at
}

// statements gives how many a role has sent since reset, in how many round trips, and
// how many pages they touched.
func (c *costs) statements(role testkit.Role) (calls, trips, pages float64) {
	c.t.Helper()
	var copies float64
	c.get(`SELECT coalesce(sum(calls) FILTER (WHERE query LIKE 'COPY%'), 0)::float8, coalesce(sum(shared_blks_hit + shared_blks_read), 0)::float8
		FROM pg_stat_statements WHERE userid = $1::text::regrole`, []any{string(role)}, &copies, &pages)
	c.sent.mu.Lock()
	defer c.sent.mu.Unlock()
	return c.sent.calls[role] + copies, c.sent.trips[role] + copies, pages
}

// sessions are the processes of all sessions but our own.
func (c *costs) sessions() (pids []int) {
	c.t.Helper()
	c.get(`SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`, nil, &pids)
	return pids
}

// sessionsCPU is what they have used so far: Linux tells, others do not.
func (c *costs) sessionsCPU() (all time.Duration) {
	c.t.Helper()
	for _, pid := range c.sessions() {
		var ns int64
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		if err == nil {
			_, err = fmt.Sscan(string(b), &ns)
		}
		if err != nil {
			return 0
		}
		all += time.Duration(ns)
	}
	return all
}

// ownCPU is what this process has used so far.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
