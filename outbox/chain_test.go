package outbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
)

// gate makes links wait, by a trigger, while the test holds it shut: before they
// are inserted, or between the insert and the commit.
type gate struct {
	f    *fixture
	conn *pgx.Conn
	key  int64
}

func (f *fixture) gate(which testkit.Server, when string) *gate {
	f.t.Helper()
	h := fnv.New32a()
	h.Write([]byte(f.schema))
	g := &gate{f: f, conn: f.session(which), key: int64(h.Sum32() >> 1)}
	f.exec(`CREATE FUNCTION ` + f.table("gate") + `() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN PERFORM pg_advisory_xact_lock_shared(` + fmt.Sprint(g.key) + `); RETURN NULL; END $$`)
	f.exec(`CREATE TRIGGER gate ` + when + ` INSERT ON ` + f.table("relay_link") + ` FOR EACH STATEMENT EXECUTE FUNCTION ` + f.table("gate") + `()`)
	return g
}

func (g *gate) shut() { g.do(`SELECT pg_advisory_lock($1)`) }
func (g *gate) open() { g.do(`SELECT pg_advisory_unlock($1)`) }
func (g *gate) do(sql string) {
	g.f.t.Helper()
	if _, err := g.conn.Exec(context.Background(), sql, g.key); err != nil {
		g.f.t.Fatal(err)
	}
}

// waiting waits until a link stands at the gate, and tells whether its
// transaction has an xid.
func (g *gate) waiting() (hasXid bool) {
	g.f.t.Helper()
	testkit.Eventually(g.f.t, 10*time.Second, func() bool {
		err := g.conn.QueryRow(context.Background(), `SELECT backend_xid IS NOT NULL FROM pg_locks JOIN pg_stat_activity USING (pid)
			WHERE locktype = 'advisory' AND NOT granted AND classid = 0 AND objid = $1::bigint::oid AND objsubid = 1`, g.key).Scan(&hasXid)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			g.f.t.Fatal(err)
		}
		return err == nil
	}, "a link waits at the gate")
	return hasXid
}

// blocked waits until the server says that somebody waits for holder's transaction.
func (f *fixture) blocked(holder *pgx.Conn) {
	f.t.Helper()
	testkit.Eventually(f.t, 10*time.Second, func() bool {
		return f.count(`SELECT count(*) FROM pg_stat_activity WHERE $1::int = ANY (pg_blocking_pids(pid))`, int(holder.PgConn().PID())) > 0
	}, "a link waits for the one before")
}

func stored(f *fixture, relay string) position {
	f.t.Helper()
	c := newChain(f.database(), owner{kindRelay, relay}, allSlots, uuid.New())
	if _, err := c.load(context.Background()); err != nil {
		f.t.Fatal(err)
	}
	return c.pos
}

func async(do func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return done
}

// Every transaction that reads L' for a round reads it while it has no
// xid. A writer comes between the two.
func TestSequenceIsReadBeforeTheXid(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		g := f.gate(which, "BEFORE")
		s := f.stepped("test")
		for i, how := range []string{"refresh", "finish"} {
			g.shut()
			f.add("k", 2*i+1, 1) // makes L' differ from what was read before
			if how == "finish" {
				g.open()
				s.t.chain.isFresh = false
				if err := s.t.startRound(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				s.fill()
				s.deliver(1)
				g.shut()
			}
			done := async(func() error {
				if how == "refresh" {
					return s.t.chain.refresh(t.Context())
				}
				return s.t.finishRound(t.Context(), nil)
			})
			if g.waiting() {
				t.Errorf("%s: the transaction has an xid before its link, so the order of its steps cannot be told", how)
			}
			open := f.begin(f.session(which))
			f.append(open, event("k", 2*i+2))
			g.open()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if seen, want := s.t.chain.fresh, f.count(`SELECT pg_sequence_last_value('`+f.table("outbox_id")+`'::regclass)`)-1; int(seen) != want {
				t.Errorf("%s: L' is %d, want %d: it was read after a writer that came before our xid", how, seen, want)
			}
			s.drain()
			f.commit(open)
			s.drain()
		}
		s.expect("k", 1, 2, 3, 4)
	})
}

// What the order of the steps is for: with the xid drawn first, a writer that
// comes between stands at or above T's xmax with an id at or below L', and is
// never read.
func TestXidBeforeTheSequenceWouldLoseRows(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		for i := 0; ; i++ {
			// Other tests share the server: one of their transactions may finish in
			// between and push xmax up.
			if lost := xidFirst(f, which, fmt.Sprint("try-", i)); lost {
				return
			}
			if i == 100 {
				t.Fatal("the wrong order loses nothing: is this still the server the rule was made for?")
			}
		}
	})
}

func xidFirst(f *fixture, which testkit.Server, name string) (lost bool) {
	s := f.stepped(name)
	s.drain()
	c, ctx := s.t.chain, context.Background()
	ours, writers := f.session(which), f.session(which)
	defer ours.Close(ctx)
	defer writers.Close(ctx)
	tx := f.begin(ours)
	if _, err := tx.Exec(ctx, `SELECT pg_current_xact_id()`); err != nil {
		f.t.Fatal(err)
	}
	writer := f.begin(writers)
	f.append(writer, event(name, 1))
	var seen int64
	if err := tx.QueryRow(ctx, c.lastIDSQL).Scan(&seen); err != nil {
		f.t.Fatal(err)
	}
	link := c.link(c.pos.lastID)
	if _, err := tx.Exec(ctx, link.sql, link.args...); err != nil {
		f.t.Fatal(err)
	}
	f.commit(tx)
	c.pos.n++
	if err := c.begin(ctx, seen, false); err != nil {
		f.t.Fatal(err)
	}
	s.t.read(ctx, 0)
	s.drain()
	f.commit(writer)
	f.add(name, 2, 1)
	s.drain()
	return fmt.Sprint(s.ns(name)) == "[2]"
}

// A take-over while the former holder's link is in an open transaction waits for
// it, and stands on it or in its place.
func TestTakeoverWhileALinkCommits(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		for _, commits := range []bool{true, false} {
			name := fmt.Sprintf("commits-%v", commits)
			f.add("k", 1, 3)
			old := f.stepped(name)
			if err := old.t.startRound(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			old.fill()
			before := old.t.chain.pos

			conn := f.session(which)
			tx := f.begin(conn)
			link := old.t.chain.link(2)
			if _, err := tx.Exec(t.Context(), link.sql, link.args...); err != nil {
				t.Fatal(err)
			}
			successor := *old
			successor.shift = &relayWork{relay: old.shift.relay, db: old.shift.db, holder: uuid.New()}
			taken := async(func() error { successor.takeOver(); return nil })
			f.blocked(conn)
			end := tx.Rollback
			if commits {
				end = tx.Commit
			}
			if err := end(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-taken
			pos := successor.t.chain.pos
			wantN, wantLast := before.n+1, before.lastID
			if commits {
				wantN, wantLast = before.n+2, 2
			}
			if pos.n != wantN || pos.lastID != wantLast || pos.round.n != before.round.n || pos.round.snap.text != before.round.snap.text {
				t.Errorf("%s: taken over at link %d, id %d of round %d, want link %d, id %d of round %d", name, pos.n, pos.lastID, pos.round.n, wantN, wantLast, before.round.n)
			}
			successor.delivered = nil
			successor.drain()
			if got := len(successor.delivered); got != f.count(`SELECT count(*) FROM `+f.table("outbox")+` WHERE id > $1`, wantLast) {
				t.Errorf("%s: %d events delivered from id %d on", name, got, wantLast)
			}
			successor.stop()
		}
	})
}

// A former holder that wakes up writes nothing: not a link, and nothing that
// would have come with one.
func TestFormerHolderWakesUp(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		f.exec(`CREATE TABLE ` + f.table("effect") + ` (i int)`)
		testkit.GrantAll(t, f.pool, f.table("effect"))
		f.add("k", 1, 10)
		old := f.stepped("test")
		if err := old.t.startRound(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		asleep := old.t.chain.pos
		successor := f.stepped("test")
		successor.drain()
		f.add("k", 11, 5)
		successor.drain()
		want := stored(f, "test")

		effect := statement{sql: `INSERT INTO ` + f.table("effect") + ` VALUES (1)`, rows: 1}
		c, ctx := old.t.chain, t.Context()
		for name, write := range map[string]func() error{
			"advance": func() error { return c.advance(ctx, 5, false, effect) },
			"durable": func() error { return c.advance(ctx, 5, true, effect) },
			"finish":  func() error { return c.finish(ctx, effect) },
			"refresh": func() error { return c.refresh(ctx) },
			"begin":   func() error { return c.begin(ctx, 3, false) },
			"startIfNew": func() error {
				c.isFresh, c.fresh = true, 3
				c.pos.round.upper = 9 // so that there is something new
				_, err := c.startIfNew(ctx)
				return err
			},
		} {
			if err := write(); !errors.Is(err, errFenced) {
				t.Errorf("%s by a former holder: %v, want errFenced", name, err)
			}
			if c.pos.n != asleep.n || c.isFresh {
				t.Errorf("%s: the former holder believes in its own link", name)
			}
		}
		if got := stored(f, "test"); got.n != want.n || got.lastID != want.lastID || got.round.n != want.round.n {
			t.Errorf("the position went from link %d, id %d to link %d, id %d", want.n, want.lastID, got.n, got.lastID)
		}
		if n := f.count(`SELECT count(*) FROM ` + f.table("effect")); n != 0 {
			t.Errorf("%d effects of a former holder", n)
		}
		// It reloads, and then it may.
		old.takeOver()
		old.drain()
		if len(old.delivered) != 0 {
			t.Errorf("%d events sent again behind the successor's position", len(old.delivered))
		}
		successor.expect("k", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	})
}

// A commit whose reply is lost has happened. Reloading finds it, the position is
// right, and the same process sends nothing twice.
func TestLostReplyOfACommit(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	var armed atomic.Bool
	proxy.OnClientBytes(func(b []byte) testkit.Action {
		if bytes.Contains(b, []byte("COMMIT")) && armed.CompareAndSwap(true, false) {
			return testkit.LoseReply
		}
		return testkit.Forward
	})
	s := f.stepped("test")
	// exec mode: statements travel as text, so that the proxy can tell a commit
	s.shift.db.pool = testkit.Pool(t, proxy.URL()+"&default_query_exec_mode=exec")
	lost := func(what string, write func() error) {
		t.Helper()
		n := stored(f, "test").n
		armed.Store(true)
		if err := write(); err == nil || errors.Is(err, errFenced) {
			t.Fatalf("%s: %v, want the error of a lost connection", what, err)
		}
		testkit.Eventually(t, 5*time.Second, func() bool { return stored(f, "test").n == n+1 }, "the link is committed all the same")
		s.reload()
		if got := s.t.chain.pos.n; got != n+2 {
			t.Errorf("%s: reloaded at link %d, want %d", what, got, n+2)
		}
	}
	ctx := context.Background()
	f.add("k", 1, 10)
	lost("refresh", func() error { return s.t.chain.refresh(ctx) })
	lost("a round's start", func() error { return s.t.chain.begin(ctx, 0, false) })
	s.fill()
	s.deliver(4)
	lost("a link", func() error { s.t.settled = 4; items, _, _ := s.t.window.view(); return s.t.link(ctx, items, nil) })
	s.fill()
	s.deliver(100)
	lost("a round's end", func() error { return s.t.finishRound(ctx, nil) })
	f.add("k", 11, 2)
	s.drain()
	s.expect("k", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
}

// The same with a whole relay: every few commits lose their reply.
func TestLostRepliesRepeatNothing(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	var commits, lost atomic.Int64
	proxy.OnClientBytes(func(b []byte) testkit.Action {
		if bytes.Contains(b, []byte("COMMIT")) && commits.Add(1)%7 == 0 {
			lost.Add(1)
			return testkit.LoseReply
		}
		return testkit.Forward
	})
	direct := f.pool
	f.pool = testkit.Pool(t, proxy.URL()+"&default_query_exec_mode=exec")
	s, cfg := newSink(), f.config()
	cfg.Window = 16
	cfg.PollInterval = 20 * time.Millisecond
	f.start(s, cfg)
	f.pool = direct
	n := 0
	testkit.Eventually(t, 60*time.Second, func() bool {
		if s.distinct() == n && lost.Load() < 6 {
			f.add("k", n+1, 10)
			n += 10
		}
		return lost.Load() >= 6 && s.distinct() == n
	}, "all is delivered and some replies are lost")
	s.inOrder(t, "k", n)
	if s.repeats != 0 {
		t.Errorf("%d repeats by one process that lost %d replies", s.repeats, lost.Load())
	}
}

// "From now" leaves the history out, also if the first try ends half way.
func TestFromNow(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.add("k", 1, 5)
	open := f.begin(f.session(testkit.PG15))
	f.append(open, event("late", 1))
	now := func(cfg *RelayConfig) { cfg.StartAt = FromNow }

	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	for cutAt := int64(1); cutAt <= 3; cutAt++ {
		name := fmt.Sprintf("cut-%d", cutAt)
		var commits atomic.Int64
		proxy.OnClientBytes(func(b []byte) testkit.Action {
			if bytes.Contains(b, []byte("COMMIT")) && commits.Add(1) == cutAt {
				return testkit.Cut
			}
			return testkit.Forward
		})
		db := f.database()
		db.pool = testkit.Pool(t, proxy.URL()+"&default_query_exec_mode=exec")
		c := newChain(db, owner{kindRelay, name}, allSlots, uuid.New())
		if _, err := c.load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.create(t.Context(), FromNow); (err == nil) != (cutAt > 2) {
			t.Fatalf("cut at commit %d: %v", cutAt, err)
		}
		s := f.stepped(name, now)
		s.drain()
		if len(s.delivered) != 0 {
			t.Errorf("cut at commit %d: %d events of the history delivered", cutAt, len(s.delivered))
		}
	}
	s := f.stepped("whole", now)
	f.add("k", 6, 2)
	s.drain()
	s.expect("k", 6, 7)
	f.commit(open) // committed after now
	s.drain()
	s.expect("late", 1)
	s.newHolder()
	s.drain()
	s.expect("k", 6, 7)
}

// Links that no position rests on are deleted in ranges, behind a round's end.
func TestOldLinksArePruned(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := f.stepped("test")
	f.add("k", 1, 5)
	s.drain()
	pos := s.t.chain.pos
	f.exec(`INSERT INTO `+f.table("relay_link")+` (relay, slot_from, slot_to, n, holder, round, last_id)
		SELECT 'test', 0, 255, n, $1::uuid, $2, $3 FROM generate_series($4::bigint + 1, $4 + 3000) AS n`,
		s.shift.holder.String(), pos.round.n, pos.lastID, pos.n)
	other := f.stepped("other") // its links are its own
	s.newHolder()
	f.add("k", 6, 5)
	s.drain()
	f.add("k", 11, 5)
	s.drain()
	if n := f.count(`SELECT count(*) FROM ` + f.table("relay_link") + ` WHERE relay = 'test'`); n < keepLinks || n > keepLinks+100 {
		t.Errorf("%d links left, want %d and a few", n, keepLinks)
	}
	s.newHolder()
	f.add("k", 16, 1)
	s.drain()
	s.expect("k", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
	other.drain()
	if got := len(other.delivered); got != 16 {
		t.Errorf("another relay of the log delivered %d events, want 16", got)
	}
}

// A crash of the server loses links that were not durable, and a successor uses
// their numbers again. A former holder that was frozen meanwhile then finds the
// number it writes free, and still nothing of its own to build on.
func TestLinkStandsOnTheOneThatWasSeen(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
		f.add("k", 1, 10)
		old := f.stepped("test")
		if err := old.t.startRound(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		c, ctx := old.t.chain, t.Context()
		for id := range int64(3) {
			if err := c.advance(ctx, id+1, false); err != nil {
				t.Fatal(err)
			}
		}
		f.exec(`DELETE FROM `+f.table("relay_link")+` WHERE n > $1`, c.pos.n-2) // as the crash does
		for range 3 {
			f.stepped("test") // each takes over, and so writes the next number
		}
		want := stored(f, "test")
		if want.n != c.pos.n+1 {
			t.Fatalf("the successors are at link %d, want one above the former holder's %d", want.n, c.pos.n)
		}
		f.exec(`DELETE FROM `+f.table("relay_link")+` WHERE n = $1`, want.n)
		want = stored(f, "test")
		for name, write := range map[string]func() error{
			"advance": func() error { return c.advance(ctx, 5, false) },
			"finish":  func() error { return c.finish(ctx) },
			"begin":   func() error { return c.begin(ctx, 3, false) },
			"startIfNew": func() error {
				c.isFresh, c.fresh = true, 3
				c.pos.round.upper = 9 // so that there is something new
				_, err := c.startIfNew(ctx)
				return err
			},
		} {
			if err := write(); !errors.Is(err, errFenced) {
				t.Errorf("%s on a link that somebody else wrote: %v, want errFenced", name, err)
			}
		}
		if got := stored(f, "test"); got.n != want.n || got.holder != want.holder {
			t.Errorf("the position went from link %d to link %d", want.n, got.n)
		}
	})
}

// A round is begun without a look where there is something new, and not so much
// that the next round would read it all again; nothing is written otherwise.
func TestStartIfNew(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
		s := f.stepped("test")
		c := s.t.chain
		is := func(when string, want bool) {
			t.Helper()
			before := stored(f, "test").n
			begun, err := c.startIfNew(t.Context())
			if err != nil || begun != want {
				t.Fatalf("%s: begun %t, %v; want %t", when, begun, err, want)
			}
			if wrote := stored(f, "test").n - before; wrote > 0 != want {
				t.Fatalf("%s: %d links were written", when, wrote)
			}
		}
		f.add("k", 1, 1)
		is("without an L'", false)
		s.drain()
		is("with nothing new", false)
		f.add("k", 2, 1)
		is("with one new event", true)
		if c.pos.round.upper != c.pos.round.prevID+1 {
			t.Fatalf("the round ends at %d, want one behind %d", c.pos.round.upper, c.pos.round.prevID)
		}
		s.t.read(t.Context(), 0)
		s.drain()
		f.add("k", 3, farBehind+1)
		is("with very many new events", false)
		s.drain()
		if n := len(s.ns("k")); n != farBehind+3 {
			t.Fatalf("%d events were delivered, want %d", n, farBehind+3)
		}
	})
}
