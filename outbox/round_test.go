package outbox

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

// One writer, one open append, poll, commit, poll. Nothing in the log
// shows that there is a transaction at or above the snapshot's xmax.
func TestAppendThatCommitsAfterThePoll(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		s := f.stepped("test")
		s.drain()
		conn := f.session(which)
		for i := range 5 {
			tx := f.begin(conn)
			f.append(tx, event("k", i+1))
			s.drain()
			if got := len(s.ns("k")); got != i {
				t.Fatalf("%d events delivered, %d are committed", got, i)
			}
			f.commit(tx)
			s.drain()
			if got := len(s.ns("k")); got != i+1 {
				t.Fatalf("%d events delivered, %d are committed", got, i+1)
			}
		}
		s.expect("k", 1, 2, 3, 4, 5)
	})
}

// A lower id that commits late is published late; nothing waits for it, and
// looking for it writes nothing.
func TestLateLowerIDsAndNobodyWaits(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		s := f.stepped("test")
		early := f.begin(f.session(which)) // has its xid before all others, its id in the middle
		if _, err := early.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
		open := f.begin(f.session(which))
		f.append(open, event("open", 1))
		f.add("quick", 1, 3)
		s.drain()
		s.expect("quick", 1, 2, 3)

		f.append(early, event("open", 2), event("open", 3))
		f.add("quick", 4, 1)
		s.drain()
		s.expect("quick", 1, 2, 3, 4)
		s.expect("open")

		before := f.count(`SELECT max(n) FROM ` + f.table("relay_link"))
		for range 5 {
			s.drain()
		}
		if after := f.count(`SELECT max(n) FROM ` + f.table("relay_link")); after > before+3 {
			t.Errorf("an idle relay wrote %d links while a transaction stood open", after-before)
		}
		f.commit(open)
		s.drain()
		s.expect("open", 1)
		f.commit(early)
		s.drain()
		s.expect("open", 1, 2, 3)
	})
}

// A transaction that has an xid and does nothing, for ever, in another database session.
func TestLongTransactionStallsNothing(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		f.exec(`CREATE TABLE ` + f.table("other") + ` (i int)`)
		idle := f.begin(f.session(which))
		if _, err := idle.Exec(t.Context(), `INSERT INTO `+f.table("other")+` VALUES (1)`); err != nil {
			t.Fatal(err)
		}
		old, err := f.session(which).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := old.QueryRow(t.Context(), `SELECT count(*) FROM `+f.table("outbox")).Scan(&n); err != nil {
			t.Fatal(err)
		}
		s := f.stepped("test")
		for i := range 10 {
			f.add("k", i+1, 1)
			s.drain()
			if got := len(s.ns("k")); got != i+1 {
				t.Fatalf("%d events delivered of %d committed, while a transaction is open", got, i+1)
			}
		}
	})
}

func TestPreparedTransaction(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		s, conn := f.stepped("test"), f.session(which)
		for i, end := range []string{"COMMIT", "ROLLBACK", "COMMIT"} {
			tx := f.begin(conn)
			f.append(tx, event("prepared", i/2+1))
			id := f.prepare(tx)
			f.add("other", i+1, 1)
			s.drain()
			if got := len(s.ns("other")); got != i+1 {
				t.Fatalf("%d events delivered beside a prepared transaction, want %d", got, i+1)
			}
			f.exec(end + ` PREPARED '` + id + `'`)
			s.drain()
		}
		s.expect("prepared", 1, 2)
	})
}

// prepare ends tx as a prepared transaction, and gives its name.
func (f *fixture) prepare(tx pgx.Tx) string {
	f.t.Helper()
	id := "postbus " + uuid.NewString()
	if _, err := tx.Exec(f.t.Context(), `PREPARE TRANSACTION '`+id+`'`); err != nil {
		f.t.Fatal(err)
	}
	pool := f.pool
	f.t.Cleanup(func() { _, _ = pool.Exec(context.Background(), `ROLLBACK PREPARED '`+id+`'`) })
	_ = tx.Rollback(f.t.Context()) // a warning: the session is in none any more
	return id
}

// 20,000 late rows are read in chunks, in order, after what was published meanwhile.
func TestLateTransactionOfManyRows(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, tx := f.stepped("test"), f.begin(f.session(testkit.PG15))
	const n = 20_000
	evs := make([]events.DomainEvent, n)
	for i := range evs {
		evs[i] = event("late", i+1)
	}
	f.append(tx, evs[:n/2]...)
	f.add("quick", 1, 2)
	f.append(tx, evs[n/2:]...)
	f.add("quick", 3, 2)
	s.drain()
	s.expect("quick", 1, 2, 3, 4)
	f.commit(tx)
	f.add("quick", 5, 1)
	s.drain()
	s.expect("quick", 1, 2, 3, 4, 5)
	for i, got := range s.ns("late") {
		if got != i+1 {
			t.Fatalf("the late event %d comes as number %d", got, i+1)
		}
	}
	if got := len(s.ns("late")); got != n {
		t.Fatalf("%d late events delivered of %d", got, n)
	}
}

// counter counts a pool's statements.
type counter struct{ statements chan string }

func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	c.statements <- d.SQL
	return ctx
}
func (c *counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (c *counter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	for _, q := range d.Batch.QueuedQueries {
		c.statements <- q.SQL
	}
	return ctx
}
func (c *counter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *counter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// Ids that nobody has any more, few or millions, are gone over.
func TestGapsOfIDs(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	c := &counter{make(chan string, 1<<16)}
	f.pool = testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = c })
	s, conn := f.stepped("test"), f.session(testkit.PG15)
	for i := range 20 {
		tx := f.begin(conn)
		f.append(tx, event("gone", 1), event("gone", 2))
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.add("k", i+1, 1)
	}
	for i := range 3 {
		f.exec(`SELECT setval('` + f.table("outbox_id") + `', 5000000 + nextval('` + f.table("outbox_id") + `'))`)
		f.add("k", 21+i, 1)
		for len(c.statements) > 0 {
			<-c.statements
		}
		s.drain()
		if n := len(c.statements); n > 60 {
			t.Errorf("%d statements to go over a gap of 5 million ids", n)
		}
	}
	for i, n := range s.ns("k") {
		if n != i+1 {
			t.Fatalf("delivered %v", s.ns("k"))
		}
	}
	if len(s.ns("k")) != 23 || len(s.ns("gone")) != 0 {
		t.Errorf("delivered %d of 23 committed and %d rolled back", len(s.ns("k")), len(s.ns("gone")))
	}
}

// An id drawn before its row's xid breaks the proof. Defaults are
// evaluated in column order.
func TestXidStandsBeforeID(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
		var xid, id string
		var xidAt, idAt, cache int
		err := f.pool.QueryRow(t.Context(), `SELECT x.attnum, i.attnum, pg_get_expr(dx.adbin, dx.adrelid), pg_get_expr(di.adbin, di.adrelid),
				(SELECT seqcache FROM pg_sequence WHERE seqrelid = $2::text::regclass)
			FROM pg_attribute x JOIN pg_attribute i USING (attrelid)
			JOIN pg_attrdef dx ON dx.adrelid = attrelid AND dx.adnum = x.attnum
			JOIN pg_attrdef di ON di.adrelid = attrelid AND di.adnum = i.attnum
			WHERE attrelid = $1::text::regclass AND x.attname = 'xid' AND i.attname = 'id'`, f.table("outbox"), f.table("outbox_id")).
			Scan(&xidAt, &idAt, &xid, &id, &cache)
		if err != nil {
			t.Fatal(err)
		}
		if xidAt != 1 || idAt <= xidAt || xid != "pg_current_xact_id()" || !strings.HasPrefix(id, "nextval(") || cache != 1 {
			t.Errorf("column %d xid DEFAULT %s, column %d id DEFAULT %s with CACHE %d", xidAt, xid, idAt, id, cache)
		}
	})
}

// last_value read from the sequence's page may be too high, which
// loses rows.
func TestNoStatementReadsTheSequencesPage(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	locked := 0
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok {
				return true
			}
			all := strings.Count(lit.Value, "last_value")
			whole := strings.Count(lit.Value, "pg_sequence_last_value(")
			if locked += whole; all != whole {
				t.Errorf("%s reads last_value without its lock: %s", e.Name(), lit.Value)
			}
			return true
		})
	}
	if locked == 0 {
		t.Error("nothing reads the sequence's position: this test looks in the wrong place")
	}
}

// The reader and the chain speak the text and the binary format, with statements
// prepared, described or neither.
func TestEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, mode := range execModes(which) {
			t.Run(fmt.Sprintf("%s/%s", which, mode), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, which)
				f.pool = testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode })
				s := f.stepped("test")
				e := event("clé '\\x", 1)
				e.Metadata = map[string]string{"traceparent": `00-"quoted"-01`}
				f.tx(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, e) })
				f.tx(func(tx pgx.Tx) error {
					return f.log.Append(t.Context(), tx, event("many", 1), event("many", 2), event("many", 3))
				})
				s.drain()
				s.reload()
				f.tx(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, event("clé '\\x", 2)) })
				s.drain()
				s.newHolder()
				s.drain()
				s.expect("clé '\\x", 1, 2)
				s.expect("many", 1, 2, 3)
				want, err := e.Encode()
				if err != nil {
					t.Fatal(err)
				}
				got := s.delivered[0]
				if string(got.Payload) != string(want) || got.EventID != e.EventID || got.Headers["traceparent"] != `00-"quoted"-01` {
					t.Errorf("delivered %s %v %s, want %s %s", got.EventID, got.Headers, got.Payload, e.EventID, want)
				}
			})
		}
	}
}

// execModes are those that a server can do. Prepared statements do not survive
// transaction pooling before PgBouncer 1.21, and describe_exec prepares one that
// the next round trip may not find.
func execModes(which testkit.Server) []pgx.QueryExecMode {
	modes := []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheDescribe}
	if which != testkit.PgBouncer {
		modes = append(modes, pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec)
	}
	return modes
}

// A relay with nothing to do sends at most two statements a second, and writes
// nothing but its lease.
func TestIdleRelayIsQuiet(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	c := &counter{make(chan string, 1<<16)}
	traced := testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) { cfg.ConnConfig.Tracer = c })
	open := f.begin(f.session(testkit.PG15)) // somebody else's long transaction makes no difference
	f.append(open, event("open", 1))
	f.add("k", 1, 50)
	s, cfg := newSink(), f.config()
	cfg.Lease, cfg.PollInterval = 0, 0 // the defaults
	direct := f.pool
	f.pool = traced
	f.start(s, cfg)
	f.pool = direct
	testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == 50 }, "all is delivered")

	const isLook, isLease = `SELECT pg_current_snapshot()`, `UPDATE `
	lease := f.table("relay_lease")
	// Rested: the pace has come down to one look in a good half second.
	for last := time.Now(); ; {
		if sql := <-c.statements; strings.HasPrefix(sql, isLook) {
			if time.Since(last) > 700*time.Millisecond {
				break
			}
			last = time.Now()
		}
	}
	links := f.count(`SELECT max(n) FROM ` + f.table("relay_link"))
	began, n := time.Now(), 0
	for ; n < 5; n++ {
		sql := <-c.statements
		if !strings.HasPrefix(sql, isLook) && !(strings.HasPrefix(sql, isLease) && strings.Contains(sql, lease)) {
			t.Errorf("an idle relay sends: %s", sql)
		}
	}
	if rate := float64(n) / time.Since(began).Seconds(); rate > 2 {
		t.Errorf("an idle relay sends %.1f statements a second", rate)
	}
	if now := f.count(`SELECT max(n) FROM ` + f.table("relay_link")); now != links {
		t.Errorf("an idle relay wrote %d links", now-links)
	}
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == 51 }, "and it is awake")
}
