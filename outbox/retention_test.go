package outbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/postbus/postbus/internal/testkit"
)

// old has all that is appended from now on count as appended a month ago.
func (f *fixture) old() *fixture {
	f.exec(`ALTER TABLE ` + f.table("outbox") + ` ALTER COLUMN at SET DEFAULT clock_timestamp() - interval '30 days'`)
	return f
}

func (f *fixture) young() {
	f.exec(`ALTER TABLE ` + f.table("outbox") + ` ALTER COLUMN at SET DEFAULT clock_timestamp()`)
}

func (f *fixture) retention(tune ...func(*RetentionConfig)) *Retention {
	f.t.Helper()
	cfg := RetentionConfig{Schema: f.schema, Interval: 20 * time.Millisecond, Logger: testLogger(f.t)}
	for _, t := range tune {
		t(&cfg)
	}
	r, err := NewRetention(f.pool, cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// retain is one look, which must remove so many events.
func (f *fixture) retain(want int64, tune ...func(*RetentionConfig)) RetentionReport {
	f.t.Helper()
	report, err := f.retention(tune...).Once(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	if report.Removed != want {
		f.t.Fatalf("%d events were removed, want %d: %+v", report.Removed, want, report)
	}
	return report
}

func (f *fixture) logged() int { return f.count(`SELECT count(*) FROM ` + f.table("outbox")) }

// rest is what a relay does when things are quiet: all there is to do, and an empty
// round that closes the gap between the ids it has seen given out and those it has read.
func (s *stepped) rest() {
	s.f.t.Helper()
	s.drain()
	if err := s.t.startRound(s.f.t.Context(), 0); err != nil {
		s.f.t.Fatal(err)
	}
	s.drain()
}

// An event that is committed late, below what the relay has passed, stays until the
// relay has sent it, whatever its id; and then it leaves, though the floor has passed
// it, and whoever looks next.
func TestRetentionWaitsForLateCommits(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		f.old()
		late, prepared := f.begin(f.session(which)), f.begin(f.session(which))
		f.append(late, event("late", 1))
		f.append(prepared, event("prepared", 1))
		var ours []string
		for _, tx := range []pgx.Tx{late, prepared} {
			var xid string
			if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text`).Scan(&xid); err != nil {
				t.Fatal(err)
			}
			ours = append(ours, xid)
		}
		f.add("k", 1, 5)
		s := f.stepped("test")
		s.rest()
		if r := f.retain(5); r.Floor != 7 {
			t.Errorf("the floor is %d, want 7", r.Floor)
		}
		f.retain(0)
		f.append(late, event("late", 2))
		f.commit(late)
		id := f.prepare(prepared)
		f.retain(0) // committed, and not sent
		if n, err := f.retention().removeThese(t.Context(), []int64{1, 2, 8}, 8); n != 0 || err != nil {
			t.Errorf("%d events that somebody took for passed before were removed (%v), want that the positions are asked again", n, err)
		}
		s.rest()
		s.expect("late", 1, 2)
		f.retain(2) // one of them below the floor, one above
		f.exec(`COMMIT PREPARED '` + id + `'`)
		f.retain(0)
		s.rest()
		s.expect("prepared", 1)
		f.retain(1)
		if n := f.logged(); n != 0 {
			t.Errorf("%d events stay in the log for ever", n)
		}
		f.retain(0)
		noted := `SELECT count(*) FROM ` + f.table("retention") + ` WHERE late && $1::text[]::xid8[]` // others' may be open
		if n := f.count(noted, ours); n != 0 {
			t.Error("transactions are still noted, that have nothing there")
		}
	})
}

func TestRetentionWaitsForTheSlowestPosition(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
		f.old()
		fast, slow := f.stepped("fast"), f.stepped("slow")
		f.add("k", 1, 3)
		slow.rest()
		fast.rest()
		f.add("k", 4, 4)
		fast.rest()
		r := f.retain(3)
		if len(r.HeldBy) != 1 || r.HeldBy[0].Name != "slow" || r.HeldBy[0].NextID != 4 || r.HeldBy[0].Kind != "relay" || r.HeldBy[0].IDs != 4 ||
			r.HeldBy[0].Age < 29*24*time.Hour || time.Since(r.HeldBy[0].Since) < 29*24*time.Hour {
			t.Errorf("held by %+v, want the slow relay, from id 4 on", r.HeldBy)
		}
		// Its round has begun: what it has sent of it may be sent again.
		if err := slow.t.startRound(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		slow.fill()
		slow.deliver(2)
		if err := slow.t.chain.advance(t.Context(), 5, true); err != nil {
			t.Fatal(err)
		}
		f.retain(0)
		slow.newHolder()
		slow.rest()
		slow.expect("k", 1, 2, 3, 4, 5, 6, 7)
		if r := f.retain(4); len(r.HeldBy) != 0 {
			t.Errorf("held by %+v, want nobody", r.HeldBy)
		}
	})
}

func TestRetentionKeepsWhatIsYoung(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := f.stepped("test")
	f.old()
	f.add("k", 1, 3)
	f.young()
	f.add("k", 4, 3)
	f.old()
	f.add("k", 7, 3)
	s.rest()
	f.retain(3) // up to the first that is young: those behind it wait for it
	keep := func(d time.Duration) func(*RetentionConfig) { return func(c *RetentionConfig) { c.Keep = d } }
	f.retain(0, keep(Forever))
	f.exec(`UPDATE ` + f.table("outbox") + ` SET at = at - interval '10 seconds'`)
	f.retain(6, keep(5*time.Second))
}

// A late event that is young when the floor has passed it stays, and is not forgotten.
func TestRetentionKeepsWhatIsLateAndYoung(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	s := f.stepped("test")
	late := f.begin(f.session(testkit.PG15))
	f.append(late, event("late", 1))
	if _, err := late.Exec(t.Context(), `UPDATE `+f.table("outbox")+` SET at = clock_timestamp()`); err != nil {
		t.Fatal(err)
	}
	f.add("k", 1, 3)
	s.rest()
	f.retain(3)
	f.commit(late)
	s.rest()
	f.retain(0)
	f.exec(`UPDATE ` + f.table("outbox") + ` SET at = at - interval '8 days'`)
	f.retain(1)
}

// Whoever may yet begin would miss what left before.
func TestRetentionWithoutReaders(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		f.old()
		open := f.begin(f.session(which))
		f.append(open, event("late", 1))
		f.add("k", 1, 5)
		if r := f.retain(0); !r.NoReaders {
			t.Error("nobody is told that nobody reads")
		}
		alone := func(c *RetentionConfig) { c.WithoutReaders = true }
		f.retain(5, alone)
		f.add("k", 6, 1)
		f.commit(open)
		f.retain(2, alone)
		if n := f.logged(); n != 0 {
			t.Errorf("%d events stay in the log for ever", n)
		}
		s := f.stepped("test") // from the beginning, from now on
		f.add("k", 7, 2)
		if r := f.retain(0, alone); r.NoReaders {
			t.Error("a relay has begun, and counts as nobody")
		}
		s.rest()
		s.expect("k", 7, 8)
	})
}

// A new relay that begins at the beginning gets all that is there, and nothing leaves
// while it comes along.
func TestRetentionWaitsForANewRelay(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	first := f.stepped("first")
	f.add("k", 1, 5)
	first.rest()
	f.retain(5)
	open := f.begin(f.session(testkit.PG15))
	f.append(open, event("late", 1))
	f.add("k", 6, 5)
	first.rest()
	second := f.stepped("second")
	f.retain(0)
	second.rest()
	second.expect("k", 6, 7, 8, 9, 10)
	f.retain(5)
	f.commit(open)
	first.rest()
	f.retain(0)
	second.rest()
	second.expect("late", 1)
	f.retain(1)
}

// What makes a position need more of the log takes turns with what removes it.
func TestRetentionTakesTurnsWithPositions(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		f.old()
		s := f.stepped("test")
		f.add("k", 1, 5)
		s.rest()
		lock := f.database().lockPositions()
		tx := f.begin(f.session(which))
		if _, err := tx.Exec(t.Context(), lock.sql, lock.args...); err != nil {
			t.Fatal(err)
		}
		var xid *string
		if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id_if_assigned()::text`).Scan(&xid); err != nil || xid != nil {
			t.Errorf("the lock has drawn the xid %v (%v): a relay that begins now would read the sequence too late", xid, err)
		}
		if _, err := f.retention().Once(t.Context()); err == nil || !strings.Contains(err.Error(), "lock timeout") {
			t.Errorf("while a position moves back: %v, want that the lock was not to be had", err)
		}
		if n := f.logged(); n != 5 {
			t.Errorf("%d events are left, want 5", n)
		}
		// A rewind, as the relay carries it out.
		pos := s.t.chain.pos
		if _, err := tx.Exec(t.Context(), `INSERT INTO `+f.table("relay_link")+` (relay, slot_from, slot_to, n, holder, round, last_id,
				prev_snapshot, prev_id, snapshot, seen_id, upper_id)
			VALUES ('test', 0, 255, $1, $2, $1, 0, '1:1:', 2, $3::text::pg_snapshot, $4, $5)`,
			pos.n+1, uuid.New().String(), pos.round.snap.text, pos.round.seenID, pos.round.upper); err != nil {
			t.Fatal(err)
		}
		f.commit(tx)
		f.retain(0)
		s.mayRepeat = nil
		s.newHolder()
		s.rest()
		s.expect("k", 1, 2, 3, 4, 5, 3, 4, 5)
		f.retain(5)
	})
}

// A rewind is not told that it is whole when it is not.
func TestRetentionStoresItsFloor(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	s := f.stepped("test")
	f.add("k", 1, 5)
	s.rest()
	f.retain(5)
	db := f.database()
	if floor, err := db.floor(t.Context()); err != nil || floor != 5 {
		t.Fatalf("the floor is %d (%v), want 5", floor, err)
	}
	// Nor does one that looked before another removed something take the floor back.
	if c, err := f.retention().chunk(t.Context(), 0, 3); err != nil || c.removed != 0 || c.floor != 0 {
		t.Errorf("a chunk on an old floor: %+v, %v, want that nothing happened", c, err)
	}
	if floor, err := db.floor(t.Context()); err != nil || floor != 5 {
		t.Errorf("the floor went from 5 to %d (%v)", floor, err)
	}
	for id, gone := range map[int64]bool{1: true, 5: true, 6: false, 7: false} {
		err := db.write(t.Context(), true, db.lockPositions(), db.ifStillInLog(id))
		if isGoneFromLog(err) != gone || (err != nil) != gone {
			t.Errorf("a rewind to %d above a floor of 5: %v, want refused=%v", id, err, gone)
		}
	}
}

// A position that holds the log back for too long is ended; its holder finds out.
func TestRetentionEndsAPosition(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*RetentionConfig){
		"by age":  func(c *RetentionConfig) { c.MaxHold = 8 * 24 * time.Hour },
		"by rows": func(c *RetentionConfig) { c.MaxHoldRows = 4 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
				fast, slow := f.stepped("fast"), f.stepped("slow")
				f.add("k", 1, 2)
				fast.rest()
				slow.rest()
				f.old()
				f.add("k", 3, 3)
				fast.rest()
				if name == "by rows" {
					f.retain(0, limit) // three ids are no fault yet
				} else {
					f.retain(0, func(c *RetentionConfig) { c.MaxHold = 31 * 24 * time.Hour })
				}
				f.add("k", 6, 2)
				fast.rest()
				f.exec(`UPDATE ` + f.table("outbox") + ` SET at = at - interval '10 days' WHERE id <= 2`)
				r := f.retain(7, limit)
				if len(r.HeldBy) != 1 || r.HeldBy[0].Name != "slow" || r.HeldBy[0].LostAt.IsZero() {
					t.Errorf("held by %+v, want the slow relay, ended", r.HeldBy)
				}
				if _, err := slow.t.poll(t.Context()); err == nil {
					err = slow.t.startRound(t.Context(), 0)
					if !errors.Is(err, errFenced) {
						t.Errorf("a holder that was at work: %v, want errFenced", err)
					}
				} else if !errors.Is(err, errFenced) {
					t.Errorf("a holder that was at work: %v, want errFenced", err)
				}
				relay, err := NewRelay(f.pool, newSink(), RelayConfig{Name: "slow", Schema: f.schema, Logger: testLogger(t)})
				if err != nil {
					t.Fatal(err)
				}
				if err := relay.Run(t.Context()); !errors.Is(err, ErrPositionLost) {
					t.Errorf("Run: %v, want ErrPositionLost", err)
				}
				f.add("k", 8, 2)
				fast.rest()
				f.retain(2, limit)
			})
		})
	}
}

// A position that has moved since it was judged is left alone.
func TestRetentionEndsNoPositionThatMoves(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	s := f.stepped("test")
	f.add("k", 1, 3)
	held, err := f.database().heldBack(t.Context())
	if err != nil || len(held) != 1 || held[0].NextID != 1 {
		t.Fatalf("held by %+v (%v)", held, err)
	}
	s.rest()
	if ended, err := f.database().endPosition(t.Context(), held[0]); ended || err != nil {
		t.Errorf("ended=%v (%v), want neither", ended, err)
	}
	f.add("k", 4, 1)
	s.rest()
	s.expect("k", 1, 2, 3, 4)
}

func TestRetentionRemovesWhatLiesAside(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
		s := f.stepped("test")
		f.old()
		f.add("k", 1, 1)
		f.young()
		f.add("k", 2, 1)
		s.rest()
		f.exec(`INSERT INTO ` + f.table("parked") + ` (relay, log_id, slot, state, changed_at, xid, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
			SELECT 'test', id, 0, state, clock_timestamp() - age, '1', 1, gen_random_uuid(), 't', 't', 'k', 'c', ''
			FROM (VALUES (1, 'discarded', interval '31 days'), -- the only one that leaves
				(2, 'discarded', '31 days'), (-1, 'given_up', '31 days'), (-2, 'discarded', '29 days'), (9, 'discarded', '31 days')) AS v (id, state, age)`)
		f.exec(`INSERT INTO ` + f.table("relay_request") + ` (relay, action, done_at)
			SELECT 'test', 'pause', clock_timestamp() - age FROM (VALUES (interval '91 days'), ('89 days'), (NULL)) AS v (age)`)
		f.exec(`INSERT INTO ` + f.table("inbox") + ` (handler, event_id, state, at)
			SELECT 'h', gen_random_uuid(), 'handled', clock_timestamp() - n * interval '1 day' FROM generate_series(1, 59) AS n, generate_series(1, 1000)`)
		r := f.retain(1)
		if r.Discarded != 1 || r.Requests != 1 || r.Inbox != 30_000 {
			t.Errorf("removed %+v, want one discarded event, one request and 30,000 rows of the inbox", r)
		}
		var ids []int64
		if err := f.pool.QueryRow(t.Context(), `SELECT array_agg(log_id ORDER BY log_id) FROM `+f.table("parked")).Scan(&ids); err != nil || len(ids) != 4 || ids[2] != 2 {
			t.Errorf("parked events %v (%v) are left, want -2, -1, 2 and 9", ids, err)
		}
		if n := f.count(`SELECT count(*) FROM ` + f.table("inbox") + ` WHERE at < clock_timestamp() - interval '30 days'`); n != 0 {
			t.Errorf("%d rows of the inbox are older than 30 days", n)
		}
	})
}

// Gaps of any size are passed in a few steps.
func TestRetentionPassesGaps(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	s := f.stepped("test")
	f.add("k", 1, 2)
	f.exec(`SELECT setval('` + f.table("outbox_id") + `', 1000000000000)`)
	open := f.begin(f.session(testkit.PG15))
	f.append(open, event("late", 1))
	f.add("k", 3, 2)
	s.rest()
	f.retain(4)
	f.exec(`SELECT setval('` + f.table("outbox_id") + `', 2000000000000)`)
	f.commit(open)
	f.add("k", 5, 1)
	s.rest()
	f.retain(2)
	f.retain(0)
	if n := f.logged(); n != 0 {
		t.Errorf("%d events are left", n)
	}
}

// Many events, in chunks whose width is learned, through PgBouncer.
func TestRetentionThroughPgBouncer(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	f.exec(`INSERT INTO ` + f.table("outbox") + ` (slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT 1, 1, gen_random_uuid(), 't', 't', 'k', 'c', '' FROM generate_series(1, 30000)`)
	s := f.stepped("test")
	if err := s.t.startRound(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if err := s.t.chain.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	direct := f.pool
	f.pool = testkit.Postgres(t, testkit.PgBouncer)
	defer func() { f.pool = direct }()
	late := f.begin(f.session(testkit.PG15))
	f.append(late, event("late", 1))
	r := f.retention()
	report, err := r.Once(t.Context())
	if err != nil || report.Removed != 30000 {
		t.Errorf("removed %+v (%v), want 30,000", report, err)
	}
	if r.width == firstChunk {
		t.Error("no width was learned")
	}
}

// One works, the other stands by and goes on after it.
func TestRetentionRunsOneAtATime(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	s := f.stepped("test")
	run := func() (r *Retention, stop func()) {
		r = f.retention()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		return r, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	holder := func() (h string) {
		_ = f.pool.QueryRow(t.Context(), `SELECT holder::text FROM `+f.table("relay_lease")+` WHERE relay = '(retention)' AND expires > clock_timestamp()`).Scan(&h)
		return h
	}
	first, stopFirst := run()
	testkit.Eventually(t, 10*time.Second, func() bool { return holder() != "" }, "the first one works")
	if err := first.Run(t.Context()); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("a second Run of one value: %v, want ErrAlreadyRunning", err)
	}
	if stats, err := ReadStats(t.Context(), f.pool, f.schema); err != nil || len(stats.Relays) != 1 {
		t.Errorf("statistics of %+v (%v), want those of the one relay", stats.Relays, err)
	}
	one := holder()
	_, stopSecond := run()
	f.add("k", 1, 3)
	s.rest()
	testkit.Eventually(t, 10*time.Second, func() bool { return f.logged() == 0 }, "the log is empty")
	if holder() != one {
		t.Error("the second one took the lease that the first one holds")
	}
	stopFirst()
	testkit.Eventually(t, 10*time.Second, func() bool { h := holder(); return h != "" && h != one }, "the second one goes on")
	f.add("k", 4, 3)
	s.rest()
	testkit.Eventually(t, 10*time.Second, func() bool { return f.logged() == 0 }, "the log is empty again")
	stopSecond()
	if holder() != "" {
		t.Error("the lease was not given up")
	}
}

// Several at once, which no lease keeps apart, remove each event once and forget none.
func TestRetentionsBesideEachOther(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	s := f.stepped("test")
	const n = 200
	late := f.begin(f.session(testkit.PG15))
	f.append(late, event("late", 1))
	f.add("k", 1, n)
	s.rest()
	reports := make(chan RetentionReport)
	for range 3 {
		r := f.retention()
		go func() {
			r.width = 7
			report, err := r.Once(context.Background())
			if err != nil {
				t.Error(err)
			}
			reports <- report
		}()
	}
	var removed int64
	for range 3 {
		removed += (<-reports).Removed
	}
	f.commit(late)
	s.rest()
	report, err := f.retention().Once(t.Context())
	if removed += report.Removed; err != nil || removed != n+1 || f.logged() != 0 {
		t.Errorf("%d events were removed of %d, and %d are left (%v)", removed, n+1, f.logged(), err)
	}
}

func TestRetentionConfigFaults(t *testing.T) {
	t.Parallel()
	_, err := NewRetention(nil, RetentionConfig{Schema: "a.b", Keep: time.Millisecond, KeepInbox: -1, MaxHold: time.Microsecond, MaxHoldRows: -1, Interval: 1})
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatalf("%v, want ErrInvalidConfig", err)
	}
	for _, name := range []string{"pool", "Schema", "Keep ", "KeepInbox", "MaxHold ", "MaxHoldRows", "Interval"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name %s", err, name)
		}
	}
}
