package outbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
)

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
				relay, err := NewRelay(f.as(testkit.Relay), newSink(), RelayConfig{Name: "slow", Schema: f.schema, Logger: testLogger(t)})
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
	if stats, err := ReadStats(t.Context(), f.as(testkit.Admin), f.schema); err != nil || len(stats.Relays) != 1 {
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
