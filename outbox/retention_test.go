package outbox

import (
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
	r, err := NewRetention(f.as(testkit.Relay), cfg)
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
	// Discarded long ago: a rewind that comes to the event must find it so.
	f.exec(`INSERT INTO ` + f.table("parked") + ` (relay, log_id, slot, state, changed_at, xid, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		VALUES ('other', 1, 0, 'discarded', '2001-01-01', '1', 1, gen_random_uuid(), 't', 't', 'k', 'c', '')`)
	if r := f.retain(0); r.Discarded != 0 {
		t.Error("the log has an event still, and nobody knows any more that it was discarded")
	}
	f.exec(`UPDATE ` + f.table("outbox") + ` SET at = at - interval '8 days'`)
	if r := f.retain(1); r.Discarded != 1 {
		t.Error("the log has lost an event, and it is still noted as discarded")
	}
}

// A position that does not say what it has seen counts as one that has seen nothing.
func TestRetentionWaitsForABrokenPosition(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	s, broken := f.stepped("test"), f.stepped("broken")
	f.add("k", 1, 3)
	s.rest()
	broken.rest()
	f.exec(`UPDATE ` + f.table("relay_link") + ` SET round = round - 1000 WHERE relay = 'broken'`)
	f.retain(0)
	f.exec(`UPDATE ` + f.table("relay_link") + ` SET round = round + 1000 WHERE relay = 'broken'`)
	f.retain(3)
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
