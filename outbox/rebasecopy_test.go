package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// private is a log on a server of the test's own.
func private(t *testing.T, settings ...string) (*testkit.PrivateServer, *fixture) {
	t.Helper()
	server := testkit.PrivatePostgres(t, settings...)
	return server, opened(t, server)
}

func opened(t *testing.T, server *testkit.PrivateServer) *fixture {
	t.Helper()
	f := &fixture{t: t, schema: "copied", pool: testkit.Pool(t, server.URL())}
	if err := migrations.Up(t.Context(), f.pool, f.schema); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.log, err = NewLog(LogConfig{Schema: f.schema}); err != nil {
		t.Fatal(err)
	}
	return f
}

// tables are those of the schema, with the ledger's.
func (f *fixture) tables() []string {
	f.t.Helper()
	rows, err := f.pool.Query(f.t.Context(), `SELECT relname::text FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind = 'r' ORDER BY 1`, f.schema)
	if err != nil {
		f.t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		f.t.Fatal(err)
	}
	return all
}

// dumped takes the schema as it is now. What it gives restores it on another server:
// pg_dump and psql where they are there, else what they do, by COPY.
func (f *fixture) dumped(server *testkit.PrivateServer) (restore func(to *testkit.PrivateServer) *fixture) {
	f.t.Helper()
	if server.Has("pg_dump") && server.Has("psql") {
		file := filepath.Join(server.Dir(), "dump.sql")
		server.Run("pg_dump", "--dbname="+server.URL(), "--no-privileges", "--schema="+f.schema, "--file="+file)
		return func(to *testkit.PrivateServer) *fixture {
			f.t.Helper()
			pool := testkit.Pool(f.t, to.URL())
			to.Run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", to.URL(), "-f", file)
			n := &fixture{t: f.t, schema: f.schema, pool: pool, log: f.log}
			n.exec(`DROP TRIGGER note_holder ON ` + n.table("relay_link")) // the tests' roles have no rights there
			return n
		}
	}
	f.t.Log("the server's package has no pg_dump: its work is done by COPY")
	ctx := f.t.Context()
	data := map[string]*bytes.Buffer{}
	var lastID, lastRequest int64
	err := pgx.BeginTxFunc(ctx, f.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		for _, table := range f.tables() {
			data[table] = &bytes.Buffer{}
			if _, err := tx.Conn().PgConn().CopyTo(ctx, data[table], `COPY `+f.table(table)+` TO STDOUT`); err != nil {
				return err
			}
		}
		return tx.QueryRow(ctx, `SELECT (SELECT last_value FROM `+f.table("outbox_id")+`), (SELECT last_value FROM `+f.table("relay_request_id_seq")+`)`).Scan(&lastID, &lastRequest)
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return func(to *testkit.PrivateServer) *fixture {
		f.t.Helper()
		n := opened(f.t.(*testing.T), to)
		newLedger(n, 0)
		n.exec(`DROP TRIGGER note_holder ON ` + n.table("relay_link"))
		for table, rows := range data {
			n.exec(`TRUNCATE ` + n.table(table))
			conn, err := n.pool.Acquire(ctx)
			if err != nil {
				f.t.Fatal(err)
			}
			_, err = conn.Conn().PgConn().CopyFrom(ctx, rows, `COPY `+n.table(table)+` FROM STDIN`)
			conn.Release()
			if err != nil {
				f.t.Fatalf("copy %s: %v", table, err)
			}
		}
		n.exec(`SELECT setval($1::text::regclass, $2), setval($3::text::regclass, $4)`, n.table("outbox_id"), lastID, n.table("relay_request_id_seq"), lastRequest)
		return n
	}
}

// writes appends n events, each in a transaction of its own, to the aggregates from
// first on in turn.
func (l *ledger) writes(n, first, last int) {
	l.f.t.Helper()
	for i := range n {
		err := pgx.BeginFunc(l.f.t.Context(), l.f.pool, func(tx pgx.Tx) error {
			return l.write(l.f.t.Context(), tx, fmt.Sprintf("a%02d", first+i%(last-first+1)))
		})
		if err != nil {
			l.f.t.Fatal(err)
		}
	}
}

// begun is a transaction that has appended an event of the aggregate, and stays open.
func (l *ledger) begun(aggregate string) pgx.Tx {
	l.f.t.Helper()
	tx, err := l.f.pool.Begin(l.f.t.Context())
	if err != nil {
		l.f.t.Fatal(err)
	}
	if err := l.write(l.f.t.Context(), tx, aggregate); err != nil {
		l.f.t.Fatal(err)
	}
	return tx
}

// A dump is taken in the middle of everything: one relay has an unfinished round,
// transactions that it has seen running have committed since, another has put events
// aside, and a third is idle. It is restored into a cluster that has come less far,
// and into one that has come further. There every relay refuses to run, and goes on
// where it was after Rebase.
func TestRebaseAfterDumpAndRestore(t *testing.T) {
	t.Parallel()
	server, f := private(t)
	usedUp(t, f.pool, 20_000)
	l := newLedger(f, 9)
	ctx := t.Context()

	refusing := newSink()
	refusing.setRule(func(m *Message, n int) Result {
		if m.Key == "a05" {
			return Result{Permanent, errRefused}
		}
		return Result{Status: Done}
	})
	l.writes(36, 1, 9)
	cfg := f.config()
	cfg.Name = "parker"
	stop := f.start(refusing, cfg)
	testkit.Eventually(t, 20*time.Second, func() bool {
		return refusing.distinct() == 32 && f.count(`SELECT count(*) FROM `+f.table("parked")) == 4
	}, "all is published or put aside")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	idle, middle := f.stepped("idle"), f.stepped("middle")
	idle.drain()
	middle.drain()

	first, second := l.begun("a01"), l.begun("a02")
	l.writes(20, 4, 9)
	idle.drain()
	middle.drain()
	third := l.begun("a03")
	l.writes(20, 4, 9)
	f.commit(first)
	if err := middle.t.startRound(ctx, 1<<40); err != nil {
		t.Fatal(err)
	}
	middle.fill()
	middle.deliver(8)
	middle.step() // a link
	middle.deliver(5)
	f.commit(second)
	f.commit(third)
	l.writes(10, 1, 9)
	never := l.begun("a09")
	restore := f.dumped(server)
	if err := never.Rollback(ctx); err != nil {
		t.Fatal(err)
	}

	for _, further := range []int64{0, 60_000} {
		name := "into a cluster that has come less far"
		if further > 0 {
			name = "into one that has come further"
		}
		t.Run(name, func(t *testing.T) {
			target := testkit.PrivatePostgres(t)
			usedUp(t, testkit.Pool(t, target.URL()), further)
			g := restore(target)
			g.t = t
			// Appends go on before anybody looks after the relays.
			gl := &ledger{g}
			gl.writes(9, 1, 9)
			relay, err := NewRelay(g.pool, newSink(), g.config())
			if err != nil {
				t.Fatal(err)
			}
			if err := relay.Run(t.Context()); !errors.Is(err, ErrOtherCluster) || !strings.Contains(err.Error(), "outbox.Rebase") {
				t.Fatalf("Run before the rebase: %v", err)
			}
			report := g.rebased(RebaseConfig{By: "on call"})
			t.Logf("%+v", report)
			if all := g.count(`SELECT count(*) FROM ` + g.table("outbox")); report.Rewritten != int64(all) && further == 0 || report.Rewritten != 0 && further > 0 ||
				report.Moved != 0 || report.Incarnation != 2 {
				t.Errorf("%+v", report)
			}
			if _, err := g.rebase(RebaseConfig{}); !errors.Is(err, ErrNothingToRebase) {
				t.Errorf("a second rebase: %v", err)
			}

			movedIdle, movedMiddle := idle.continued(g), middle.continued(g)
			open := gl.begun("a01")
			gl.writes(8, 2, 9)
			movedIdle.drain()
			movedMiddle.drain()
			g.commit(open)
			movedIdle.drain()
			movedMiddle.drain()
			movedIdle.judged(gl)
			movedMiddle.judged(gl)
			if before, after := idle.delivered[0].Source, movedIdle.delivered[len(movedIdle.delivered)-1].Source; before[:36] != after[:36] || !strings.HasSuffix(after, "/2") {
				t.Errorf("the log was %s, is %s", before, after)
			}

			s := newSink()
			s.got, s.repeats = append(s.got, refusing.got...), 0
			for key, ns := range refusing.byKey {
				s.byKey[key] = append(s.byKey[key], ns...)
			}
			for id := range refusing.seen {
				s.seen[id] = true
			}
			cfg := g.config()
			cfg.Name = "parker"
			g.start(s, cfg)
			desk, err := NewDesk(g.pool, "parker", DeskConfig{Schema: g.schema})
			if err != nil {
				t.Fatal(err)
			}
			given, err := desk.Parked(t.Context(), ParkedFilter{}, 0, 100)
			if err != nil || len(given) != 4 {
				t.Fatalf("%d parked: %v", len(given), err)
			}
			if err := desk.Replay(t.Context(), given[0].LogID); err != nil {
				t.Fatal(err)
			}
			total := gl.committed()
			testkit.Eventually(t, 30*time.Second, func() bool { return s.distinct() == total }, "the relay with parked events publishes all %d", total)
			for i := range 9 {
				key := fmt.Sprintf("a%02d", i+1)
				s.inOrder(t, key, g.count(`SELECT version FROM `+g.table("aggregate")+` WHERE key = $1`, key))
			}
			if s.repeats != 0 {
				t.Errorf("%d repeats after a clean stop", s.repeats)
			}
		})
	}
}

// A switch to a logical replica whose sequence began anew, and where retention had
// left nothing in the way: new events got ids that the relays had passed. Rebase gives
// them ids above, and none is lost.
func TestRebaseAfterLogicalReplication(t *testing.T) {
	t.Parallel()
	server, f := private(t, "wal_level=logical")
	l := newLedger(f, 9)
	_, g := private(t)
	gl := newLedger(g, 0)
	tables := g.tables()
	for i, name := range tables {
		tables[i] = g.table(name)
	}
	all := strings.Join(tables, ", ")
	g.exec(`TRUNCATE ` + all)
	g.exec(`DROP TRIGGER note_holder ON ` + g.table("relay_link"))
	f.exec(`CREATE PUBLICATION everything FOR TABLE ` + all)
	g.exec(`CREATE SUBSCRIPTION everything CONNECTION '` + server.URL() + `' PUBLICATION everything`)
	// A slot waits for the transactions that are open when it is made, so that none is yet.
	testkit.Eventually(t, 60*time.Second, func() bool {
		return g.count(`SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'`) == 0
	}, "the replica has what there was")

	l.writes(45, 1, 9)
	s := f.stepped("relay")
	late := l.begun("a01")
	l.writes(20, 2, 9)
	s.drain()
	f.exec(`DELETE FROM ` + f.table("outbox") + ` WHERE id <= 60`)
	l.writes(10, 2, 9)
	s.step()
	f.commit(late)
	total := l.committed()
	left := f.count(`SELECT count(*) FROM ` + f.table("outbox"))
	links := f.count(`SELECT max(n) FROM ` + f.table("relay_link"))
	testkit.Eventually(t, 60*time.Second, func() bool {
		return gl.committed() == total && g.count(`SELECT count(*) FROM `+g.table("outbox")) == left &&
			g.count(`SELECT coalesce(max(n), 0) FROM `+g.table("relay_link")) == links
	}, "the replica has caught up")
	if _, err := g.rebase(RebaseConfig{}); !errors.Is(err, ErrNotAtRest) || !strings.Contains(err.Error(), "DROP SUBSCRIPTION everything") {
		t.Errorf("while a subscription is there: %v", err)
	}
	g.exec(`DROP SUBSCRIPTION everything`)

	gl.writes(18, 1, 9) // ids from 1 on
	if err := pgx.BeginFunc(t.Context(), g.pool, func(tx pgx.Tx) error {
		return pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error { return gl.write(t.Context(), tx, "a02") }) // a savepoint
	}); err != nil {
		t.Fatal(err)
	}
	if n := g.count(`SELECT count(*) FROM ` + g.table("outbox") + ` WHERE id < 20`); n != 19 {
		t.Fatalf("%d events have low ids, want 19: this test shows nothing", n)
	}
	g.exec(`UPDATE ` + g.table("outbox_source") + ` SET system_identifier = (SELECT system_identifier FROM pg_control_system())`)
	g.exec(`UPDATE ` + g.table("relay_link") + ` SET system_identifier = NULL`)
	if err := g.database().check(t.Context()); !errors.Is(err, ErrSequenceBehind) {
		t.Errorf("the sequence is behind: %v", err)
	}
	g.exec(`UPDATE ` + g.table("outbox_source") + ` SET system_identifier = 1`)

	report := g.rebased(RebaseConfig{})
	t.Logf("%+v", report)
	if report.Moved != 19 || report.LastID < int64(total)+19 {
		t.Errorf("%+v", report)
	}
	moved := s.continued(g)
	gl.writes(9, 1, 9)
	moved.drain()
	moved.judged(gl)
}
