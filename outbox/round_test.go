package outbox

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"hash/maphash"
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

// stepped is a relay whose publisher and clock are the test: it takes over,
// looks, reads, and writes links by the code that runs in production, one step at
// a time, and what its lane gets is delivered when the test says so.
type stepped struct {
	f         *fixture
	shift     *shift
	t         *tenure
	delivered []*item      // in order, repeats included
	width     func() int64 // of the reader's first window in a round; nil: as it is

	sent      map[int64]bool // by log id
	mayRepeat map[int64]bool // of those, what a crash has left above the last link; nil: anything
}

func (f *fixture) stepped(name string, tune ...func(*RelayConfig)) *stepped {
	f.t.Helper()
	cfg := f.config()
	cfg.Name = name
	for _, t := range tune {
		t(&cfg)
	}
	relay, err := NewRelay(f.pool, newSink(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	s := &stepped{f: f, shift: &shift{relay: relay, db: f.database()}, sent: map[int64]bool{}, mayRepeat: map[int64]bool{}}
	s.newHolder()
	f.t.Cleanup(s.stop)
	return s
}

func (f *fixture) database() *database {
	return &database{pool: f.pool, schema: f.schema, timeout: 20 * time.Second}
}

// newHolder is another process that takes over: it knows what is stored.
func (s *stepped) newHolder() {
	s.f.t.Helper()
	s.shift.holder, s.shift.sent, s.shift.sentRound = uuid.New(), nil, 0
	if s.t != nil && s.mayRepeat != nil {
		items, _, _ := s.t.window.view()
		for _, it := range items {
			s.mayRepeat[it.LogID] = s.sent[it.LogID]
		}
		for id := range s.t.sentBefore { // by reloads, perhaps not read again since
			s.mayRepeat[id] = s.mayRepeat[id] || s.t.active && id > s.t.chain.pos.lastID
		}
	}
	s.takeOver()
}

// reload is what the same process does after an error: it remembers what it sent.
func (s *stepped) reload() {
	s.f.t.Helper()
	s.shift.remember(s.t)
	s.takeOver()
}

func (s *stepped) stop() {
	if s.t != nil && s.t.stopReading != nil {
		s.t.stopReading()
	}
}

func (s *stepped) takeOver() {
	s.f.t.Helper()
	s.stop()
	ctx := context.Background()
	l := newLease(s.shift.db, s.shift.relay.cfg.Name, allSlots, s.shift.holder, time.Minute)
	source, err := s.shift.db.source(ctx)
	if err != nil {
		s.f.t.Fatal(err)
	}
	s.t = s.shift.newTenure(l, source)
	if err := s.t.takeOver(ctx); err != nil {
		s.f.t.Fatal(err)
	}
	s.t.seed = maphash.MakeSeed()
	s.t.health = newHealth(s.t.log, "test", func() {})
	s.t.lanes = []*lane{newLane(s.t)}
	s.t.parked = map[int64]*item{}
	s.t.idle.reset(time.Minute)
	s.narrow()
	if s.t.sentRound != s.t.chain.pos.round.n {
		s.t.sentBefore = nil
	}
	if !s.t.chain.pos.finished() {
		s.t.read(ctx, s.t.chain.pos.lastID)
	}
}

// deliver publishes up to n of the events that stand in the lane.
func (s *stepped) deliver(n int) {
	l := s.t.lanes[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	for ; n > 0 && len(l.fifo) > 0; n-- {
		it := l.fifo[0]
		l.fifo = l.fifo[1:]
		if s.sent[it.LogID] && s.mayRepeat != nil && !s.mayRepeat[it.LogID] {
			s.f.t.Errorf("event %d is sent twice: the position had passed it, or the same process had sent it before", it.LogID)
		}
		s.sent[it.LogID] = true
		delete(s.mayRepeat, it.LogID)
		s.delivered = append(s.delivered, it)
		it.state.Store(stSettled)
	}
}

// fill waits until the lane has something, or all of the round is in the window.
func (s *stepped) fill() {
	s.f.t.Helper()
	l := s.t.lanes[0]
	limit := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		standing := len(l.fifo)
		l.mu.Unlock()
		if _, _, ended := s.t.window.view(); standing > 0 || ended {
			return
		}
		select {
		case <-l.wakeC:
		case <-s.t.progressC:
		case err := <-s.t.readErrC:
			s.f.t.Fatal(err)
		case <-limit:
			s.f.t.Fatal("the reader neither gives an event nor ends")
		}
	}
}

// narrow makes the reader's windows small; nobody reads while no round is active.
func (s *stepped) narrow() {
	if s.width != nil && !s.t.active {
		s.t.reader.width = s.width()
	}
}

// step does what the relay's loop does next, looking at once if it is idle.
func (s *stepped) step() (acted bool) {
	s.f.t.Helper()
	s.t.idle.due = true
	s.narrow()
	acted, _, err := s.t.step(context.Background())
	if err != nil {
		s.f.t.Fatal(err)
	}
	return acted
}

// drain works until a look finds nothing more.
func (s *stepped) drain() {
	s.f.t.Helper()
	for {
		acted := s.step()
		if acted {
			continue
		}
		if !s.t.active {
			return
		}
		s.fill()
		s.deliver(1 << 30)
	}
}

// ns are the numbers of key's deliveries.
func (s *stepped) ns(key string) (ns []int) {
	for _, it := range s.delivered {
		if it.Key == key {
			ns = append(ns, numberOf(it.Payload))
		}
	}
	return ns
}

func (s *stepped) expect(key string, want ...int) {
	s.f.t.Helper()
	if got := s.ns(key); fmt.Sprint(got) != fmt.Sprint(want) {
		s.f.t.Fatalf("key %s: delivered %v, want %v", key, got, want)
	}
}

// session is one connection to the server, past every pooler.
func (f *fixture) session(which testkit.Server) *pgx.Conn {
	f.t.Helper()
	conn, err := pgx.Connect(f.t.Context(), testkit.URL(f.t, which))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (f *fixture) begin(conn *pgx.Conn) pgx.Tx {
	f.t.Helper()
	tx, err := conn.Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return tx
}

func (f *fixture) append(tx pgx.Tx, evs ...events.DomainEvent) {
	f.t.Helper()
	if err := f.log.Append(f.t.Context(), tx, evs...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) commit(tx pgx.Tx) {
	f.t.Helper()
	if err := tx.Commit(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func eachPostgres(t *testing.T, test func(t *testing.T, f *fixture, which testkit.Server)) {
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			test(t, setUp(t, which), which)
		})
	}
}

// relay.md 2: one writer, one open append, poll, commit, poll. Nothing in the log
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

// relay.md 1: an id drawn before its row's xid breaks the proof. Defaults are
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

// relay.md 2: last_value read from the sequence's page may be too high, which
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
