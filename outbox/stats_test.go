package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

func (f *fixture) stats() Stats {
	f.t.Helper()
	s, err := ReadStats(context.Background(), f.as(testkit.Admin), f.schema)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// statsOf gives the stats of one name, which must be there.
func (f *fixture) statsOf(name string) RelayStats {
	f.t.Helper()
	s := f.stats()
	i := slices.IndexFunc(s.Relays, func(r RelayStats) bool { return r.Name == name })
	if i < 0 {
		f.t.Fatalf("no stats of %q in %+v", name, s.Relays)
	}
	return s.Relays[i]
}

// What a relay is said to have published, and not, at each step of two rounds.
func TestStatsFollowThePosition(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
		if s := f.stats(); len(s.Relays) != 0 || s.Log.LastID != 0 || s.Log.OldestID != 0 || !s.Log.OldestAt.IsZero() || s.Log.Bytes == 0 {
			t.Fatalf("of an empty log: %+v", s)
		}
		f.add("k", 1, 5)
		if s := f.stats(); s.Log.LastID != 5 || s.Log.OldestID != 1 || s.At.Sub(s.Log.OldestAt) < 0 {
			t.Errorf("of a log of five: %+v", s)
		}

		s := f.stepped("test")
		expect := func(what string, backlog, oldest int64, inRound bool, at int64) {
			t.Helper()
			r := f.statsOf("test")
			if r.Backlog != backlog || r.OldestUnpublishedID != oldest || r.OldestUnpublished.IsZero() != (oldest == 0) || r.Position.InRound != inRound || r.Position.ID != at {
				t.Errorf("%s: backlog %d, oldest %d, in round %v, at %d; want %d, %d, %v, %d; %+v",
					what, r.Backlog, r.OldestUnpublishedID, r.Position.InRound, r.Position.ID, backlog, oldest, inRound, at, r)
			}
			if r.OldestUnpublishedAge < 0 || r.OldestUnpublishedAge > time.Minute || r.LateTransactions != 0 {
				t.Errorf("%s: age %s, late %d", what, r.OldestUnpublishedAge, r.LateTransactions)
			}
		}
		expect("at the beginning", 5, 1, false, 0)
		s.step() // begins a round
		expect("in a round", 5, 1, true, 0)
		f.add("k", 6, 2) // two more for the next one
		s.fill()
		s.deliver(3)
		items, _, _ := s.t.window.view()
		s.t.settled = 3
		if err := s.t.link(t.Context(), items, nil); err != nil {
			t.Fatal(err)
		}
		expect("after three", 4, 4, true, 3)
		s.drain()
		expect("at the end", 0, 0, false, 7)

		if r := f.statsOf("test"); r.Kind != "relay" || r.Position.Link == 0 || r.Position.LinksKept != r.Position.Link || r.Position.LinkAt.Before(r.Position.RoundAt) {
			t.Errorf("position: %+v", r)
		}
		if r := f.statsOf("test"); r.IDsPerSecond <= 0 || !r.moved {
			t.Errorf("seven events were passed within the minute, and it moves by %g", r.IDsPerSecond)
		}
	})
}

// A transaction that commits after others with higher ids: it is not there, then
// late, then part of a round, then published.
func TestStatsOfLateEvents(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		s := f.stepped("test")
		open := f.begin(f.session(which))
		f.append(open, event("late", 1), event("late", 2))
		f.add("k", 1, 4)
		s.drain()
		if r := f.statsOf("test"); r.Backlog != 0 || r.LateTransactions != 0 || r.OldestUnpublishedID != 0 {
			t.Errorf("what is open is nobody's business: %+v", r)
		}
		f.commit(open)
		expect := func(what string, oldest int64, late int) {
			t.Helper()
			if r := f.statsOf("test"); r.OldestUnpublishedID != oldest || r.LateTransactions != late || r.OldestUnpublished.IsZero() != (oldest == 0) {
				t.Errorf("%s: oldest %d of %d late transactions, want %d of %d", what, r.OldestUnpublishedID, r.LateTransactions, oldest, late)
			}
		}
		expect("committed", 1, 1)
		s.step()
		expect("in a round", 1, 1)
		s.fill()
		s.deliver(1)
		items, _, _ := s.t.window.view()
		s.t.settled = 1
		if err := s.t.link(t.Context(), items, nil); err != nil {
			t.Fatal(err)
		}
		expect("half of it published", 2, 1)
		s.drain()
		expect("published", 0, 0)
	})
}

// The oldest unpublished event is the one that a look at every row finds, whatever
// the order of appends, commits, rollbacks and rounds.
func TestStatsAgainstEveryRow(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	s := f.stepped("test")
	var open []pgx.Tx
	var idle []*pgx.Conn
	for range 4 {
		idle = append(idle, f.session(testkit.PG15))
	}
	n := 0
	for range 120 {
		switch rng.IntN(6) {
		case 0:
			if len(idle) > 0 {
				open, idle = append(open, f.begin(idle[0])), idle[1:]
			}
		case 1, 2:
			if len(open) > 0 {
				n++
				f.append(open[rng.IntN(len(open))], event("k", n))
			} else {
				n++
				f.add("k", n, 1)
			}
		case 3:
			if len(open) > 0 {
				i := rng.IntN(len(open))
				idle = append(idle, open[i].Conn())
				if rng.IntN(4) == 0 {
					_ = open[i].Rollback(t.Context())
				} else {
					f.commit(open[i])
				}
				open = slices.Delete(open, i, i+1)
			}
		case 4:
			s.step()
		case 5:
			if s.t.active {
				s.fill()
				s.deliver(1 + rng.IntN(2))
				items, _, _ := s.t.window.view()
				for s.t.settled < len(items) && items[s.t.settled].state.Load() == stSettled {
					s.t.settled++
				}
				if s.t.settled > 0 {
					if err := s.t.link(t.Context(), items, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		id, at := f.oldestByHand("test")
		if r := f.statsOf("test"); r.OldestUnpublishedID != id || !r.OldestUnpublished.Equal(at) {
			t.Fatalf("the oldest is said to be %d of %s, and is %d of %s (seed %d)", r.OldestUnpublishedID, r.OldestUnpublished, id, at, seed)
		}
	}
	for _, tx := range open {
		_ = tx.Rollback(t.Context())
	}
}

// oldestByHand looks at every row that is committed.
func (f *fixture) oldestByHand(relay string) (oldest int64, at time.Time) {
	f.t.Helper()
	pos := stored(f, relay)
	rows, err := f.pool.Query(context.Background(), `SELECT id, xid::text::bigint, at FROM `+f.table("outbox"))
	if err != nil {
		f.t.Fatal(err)
	}
	var id, xid int64
	var appended time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &xid, &appended}, func() error {
		passed := pos.round.prev.sees(uint64(xid)) || pos.round.snap.sees(uint64(xid)) && (pos.finished() || id <= pos.lastID)
		if !passed && (oldest == 0 || appended.Before(at)) {
			oldest, at = id, appended
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return oldest, at
}

// How somebody is steered, who runs it, what is parked and what was asked for.
func TestStatsOfSteeringAndParkedEvents(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.exec(`INSERT INTO ` + f.table("relay") + ` (relay, kind, paused, rate, types, skip_below, lost_at)
		VALUES ('a', 'relay', false, NULL, NULL, 0, NULL), ('b', 'handler', true, 12.5, '{order.*,stock.moved}', 3, '2026-01-02T03:04:05Z')`)
	f.exec(`INSERT INTO ` + f.table("relay_lease") + ` VALUES ('a', 0, 255, '00000000-0000-0000-0000-00000000000a', clock_timestamp() + interval '1 hour'),
		('b', 0, 255, '00000000-0000-0000-0000-00000000000b', '-infinity')`)
	f.exec(`INSERT INTO ` + f.table("relay_request") + ` (relay, action, requested_at, done_at) VALUES
		('b', 'pause', clock_timestamp() - interval '3 hours', clock_timestamp() - interval '2 hours'), ('b', 'resume', clock_timestamp() - interval '1 hour', NULL),
		('b', 'rate', clock_timestamp(), NULL), ('nobody', 'pause', clock_timestamp(), NULL)`)
	f.exec(`UPDATE ` + f.table("retention") + ` SET floor = 7, looked_at = clock_timestamp() - interval '1 hour'`)
	f.parkedRow("a", 1, "retrying", "k1")
	f.parkedRow("a", 2, "waiting", "k1")
	f.parkedRow("a", 3, "given_up", "k2")
	f.parkedRow("a", 4, "given_up", "k3")
	f.parkedRow("a", 5, "discarded", "k4")

	s := f.stats()
	if len(s.Relays) != 3 || s.Relays[0].Name != "a" || s.Relays[1].Name != "b" || s.Relays[2].Name != "nobody" {
		t.Fatalf("relays: %+v", s.Relays)
	}
	if l := s.Log; l.Floor != 7 || s.At.Sub(l.RetentionAt).Round(time.Hour) != time.Hour {
		t.Errorf("retention: %+v", l)
	}
	a, b, nobody := s.Relays[0], s.Relays[1], s.Relays[2]
	if a.Kind != "relay" || a.Paused || a.Rate != 0 || a.Types != nil || !a.Lost.IsZero() || !a.Lease.Held || a.Lease.Holder.String()[35] != 'a' || a.Created.IsZero() {
		t.Errorf("a: %+v", a)
	}
	if b.Kind != "handler" || !b.Paused || b.Rate != 12.5 || fmt.Sprint(b.Types) != "[order.* stock.moved]" || b.SkipBelow != 3 || b.Lost.Year() != 2026 ||
		b.Lease.Held || !b.Lease.Until.IsZero() || s.At.Sub(b.PausedSince).Round(time.Hour) != 2*time.Hour {
		t.Errorf("b: %+v", b)
	}
	if b.Requests.Open != 2 || s.At.Sub(b.Requests.Oldest).Round(time.Hour) != time.Hour || nobody.Requests.Open != 1 || nobody.Kind != "" {
		t.Errorf("requests: %+v, %+v", b.Requests, nobody)
	}
	p := a.Parked
	for _, c := range []struct {
		of   ParkedCount
		rows int64
	}{{p.Retrying, 1}, {p.Waiting, 1}, {p.GivenUp, 2}, {p.Discarded, 1}} {
		if c.of.Rows != c.rows || c.of.Bytes != 10*c.rows || c.of.Oldest.IsZero() {
			t.Errorf("%+v, want %d rows of 10 bytes", c.of, c.rows)
		}
	}
	if p.KeysBlocked != 3 || p.Rows() != 4 || p.AtLeast || b.Parked != (ParkedStats{}) {
		t.Errorf("%+v, %+v", p, b.Parked)
	}
	few, err := f.database().stats(t.Context(), 2, false)
	if err != nil || !few.Relays[0].Parked.AtLeast || few.Relays[0].Parked.Rows() != 3 || few.Relays[0].Parked.Discarded.Rows != 0 {
		t.Errorf("counted up to 2: %+v, %v", few.Relays[0].Parked, err)
	}
}

// parkedRow puts an event of 10 bytes aside, as a relay that nobody runs would have.
func (f *fixture) parkedRow(relay string, id int, state, key string) {
	f.t.Helper()
	f.exec(`INSERT INTO `+f.table("parked")+` (relay, log_id, slot, state, xid, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		VALUES ($1, $2, 0, $3, '3', 1, gen_random_uuid(), 'order', 'order.changed', $4, 'text/plain', '0123456789')`, relay, id, state, key)
}

// The rate counts what the links of the last minute have passed: neither what a link
// that begins a round says, nor the ids between late events.
func TestStatsOfTheRate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		links string // n, round, last_id, seconds ago, prev_id
		rate  float64
		moved bool
	}{
		{"steady", `(1, 1, 0, 100, 0), (2, 1, 600, 50, NULL), (3, 1, 1200, 1, NULL)`, 20, true},
		{"of young links", `(1, 1, 0, 20, 0), (2, 1, 600, 5, NULL), (3, 1, 1200, 1, NULL)`, 60, true},
		{"over before the minute", `(1, 1, 0, 300, 0), (2, 1, 600, 200, NULL), (3, 1, 1200, 100, NULL)`, 0, false},
		{"taken over and over", `(1, 1, 0, 300, 0), (2, 1, 600, 200, NULL), (3, 1, 600, 20, NULL), (4, 1, 600, 1, NULL)`, 0, false},
		{"late events", `(1, 1, 0, 300, 0), (2, 1, 9000, 200, NULL), (3, 3, 0, 100, 9000), (4, 3, 17, 50, NULL), (5, 3, 8000, 40, NULL)`, 0, true},
		{"late ones, then the rest", `(1, 1, 0, 300, 0), (2, 1, 9000, 200, NULL), (3, 3, 0, 100, 9000), (4, 3, 17, 50, NULL), (5, 3, 9060, 40, NULL)`, 1, true},
		{"a rewind", `(1, 1, 9000, 300, 0), (2, 2, 0, 50, 5000), (3, 2, 5060, 40, NULL)`, 1, true},
		{"one link", `(1, 1, 9000, 1, 0)`, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			f.exec(`INSERT INTO ` + f.table("relay_link") + ` (relay, slot_from, slot_to, n, holder, round, last_id, at, prev_snapshot, prev_id, snapshot, seen_id, upper_id)
				SELECT 'test', 0, 255, n, gen_random_uuid(), round, last_id, clock_timestamp() - ago * interval '1 second', '1:1:', prev_id, '1:1:', 10000, 10000
				FROM (VALUES ` + c.links + `) AS v (n, round, last_id, ago, prev_id)`)
			f.exec(`INSERT INTO ` + f.table("relay") + ` (relay, kind) VALUES ('test', 'relay')`)
			r := f.statsOf("test")
			if r.IDsPerSecond < c.rate*0.5 || r.IDsPerSecond > c.rate*1.01 || r.moved != c.moved {
				t.Errorf("%g ids a second, moved %v; want %g, %v", r.IDsPerSecond, r.moved, c.rate, c.moved)
			}
		})
	}
}

// Whoever lacks a privilege is told what to grant, all of it, and then nothing is
// missing; and it is nothing but to read.
func TestStatsPrivileges(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		role := f.schema
		f.exec(`CREATE ROLE ` + role)
		t.Cleanup(func() { f.exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
		pool := testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = role })
		f.add("k", 1, 1)
		s := f.stepped("test")
		s.drain()

		_, err := ReadStats(t.Context(), pool, f.schema)
		if !errors.Is(err, ErrMissingPrivilege) {
			t.Fatal(err)
		}
		_, grants, ok := strings.Cut(err.Error(), "owner: ")
		if !ok || strings.Count(grants, "GRANT") != 9 || regexp.MustCompile(`INSERT|UPDATE|DELETE`).MatchString(grants) {
			t.Fatalf("what to grant: %v", err)
		}
		most := strings.Split(strings.TrimSuffix(grants, ";"), "; ")
		slices.SortFunc(most, func(a, b string) int { return strings.Index(b, "SEQUENCE") - strings.Index(a, "SEQUENCE") })
		f.exec(strings.Join(most[1:], ";"))
		if _, err := ReadStats(t.Context(), pool, f.schema); !errors.Is(err, ErrMissingPrivilege) || !strings.Contains(err.Error(), "SEQUENCE") {
			t.Errorf("without the sequence: %v", err)
		}
		f.exec(grants)
		if s, err := ReadStats(t.Context(), pool, f.schema); err != nil || len(s.Relays) != 1 || s.Log.LastID != 1 {
			t.Errorf("with all: %+v, %v", s, err)
		}
		f.setLease("test", held)
		if err := Check(t.Context(), pool, f.quick()); err != nil {
			t.Error(err)
		}
	})
}

// Through PgBouncer, and in every exec mode of pgx.
func TestStatsInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, mode := range execModes(which) {
			t.Run(fmt.Sprintf("%s/%s", which, mode), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, which)
				f.pool = testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode })
				f.add("k", 1, 2)
				s := f.stepped("test")
				s.drain()
				f.setLease("test", held)
				f.add("k", 3, 1)
				f.parkedRow("test", 1, "given_up", "k")
				f.exec(`UPDATE ` + f.table("relay") + ` SET types = '{order.*,b}', rate = 2.5`)
				r := f.statsOf("test")
				if r.Backlog != 1 || r.OldestUnpublishedID != 3 || r.Parked.GivenUp.Rows != 1 || len(r.Types) != 2 || r.Rate != 2.5 || !r.Lease.Held {
					t.Errorf("%+v", r)
				}
				for range 7 { // past the point where generic plans are tried
					f.one(f.quick(), ProblemGivenUp)
				}
			})
		}
	}
}

func TestStatsRefusals(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	if _, err := ReadStats(t.Context(), nil, "not a name"); !errors.Is(err, ErrInvalidConfig) {
		t.Error(err)
	}
	if _, err := ReadStats(t.Context(), f.pool, f.schema+"_none"); err == nil {
		t.Error("no error for a schema that is not there")
	}
}
