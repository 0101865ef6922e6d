package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// rebase is Rebase of the fixture's schema.
func (f *fixture) rebase(cfg RebaseConfig) (RebaseReport, error) {
	f.t.Helper()
	cfg.Schema = f.schema
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	return Rebase(ctx, f.as(testkit.Admin), cfg)
}

func (f *fixture) rebased(cfg RebaseConfig) RebaseReport {
	f.t.Helper()
	report, err := f.rebase(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	return report
}

// fromElsewhere does to the log what a copy into another cluster does: every
// transaction id of it lies by above those of this one. by is far, or below 0.
func (f *fixture) fromElsewhere(by int64) {
	f.t.Helper()
	f.exec(`UPDATE ` + f.table("outbox_source") + ` SET system_identifier = system_identifier - 1`)
	f.exec(`UPDATE ` + f.table("relay_link") + ` SET system_identifier = system_identifier - 1`)
	for _, table := range []string{"outbox", "parked"} {
		f.exec(`UPDATE `+f.table(table)+` SET xid = (xid::text::bigint + $1)::text::xid8`, by)
	}
	f.exec(`UPDATE `+f.table("retention")+` SET late = ARRAY(SELECT (x::text::bigint + $1)::text::xid8 FROM unnest(late) AS x)`, by)
	for _, column := range []string{"prev_snapshot", "snapshot"} {
		rows, err := f.pool.Query(f.t.Context(), `SELECT DISTINCT `+column+`::text FROM `+f.table("relay_link")+` WHERE `+column+`::text <> '1:1:'`)
		if err != nil {
			f.t.Fatal(err)
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			f.t.Fatal(err)
		}
		for _, text := range found {
			s, err := parseSnapshot(text)
			if err != nil {
				f.t.Fatal(err)
			}
			// What is too old for that is open in other tests, and has no rows here.
			s.xip = slices.DeleteFunc(s.xip, func(x uint64) bool { return int64(x)+by < lowest })
			for i := range s.xip {
				s.xip[i] += uint64(by)
			}
			f.exec(`UPDATE `+f.table("relay_link")+` SET `+column+` = $1::text::pg_snapshot WHERE `+column+`::text = $2`,
				fmt.Sprintf("%d:%d:%s", max(lowest, int64(s.xmin)+by), int64(s.xmax)+by, strings.Join(texts(s.xip), ",")), text)
		}
	}
}

// usedUp has the cluster come as far as transaction id n.
func usedUp(t *testing.T, pool *pgxpool.Pool, n int64) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), fmt.Sprintf(`DO $$ BEGIN WHILE pg_snapshot_xmax(pg_current_snapshot()) < '%d' LOOP PERFORM pg_current_xact_id(); ROLLBACK; END LOOP; END $$`, n)); err != nil {
		t.Fatal(err)
	}
}

// continued is another process that takes s over in the database of f, which knows
// what was copied there. What s had sent above its last link may be sent again.
func (s *stepped) continued(f *fixture) *stepped {
	f.t.Helper()
	n := f.stepped(s.shift.relay.cfg.Name)
	n.delivered, n.sent, n.mayRepeat, n.width = slices.Clone(s.delivered), maps.Clone(s.sent), maps.Clone(s.mayRepeat), s.width
	items, _, _ := s.t.window.view()
	for _, it := range items {
		n.mayRepeat[it.LogID] = s.sent[it.LogID]
	}
	return n
}

// judged fails unless all that was committed was delivered, in order per aggregate.
func (s *stepped) judged(l *ledger) {
	s.f.t.Helper()
	b := &broker{t: s.f.t}
	for _, it := range s.delivered {
		b.arrivals = append(b.arrivals, arrival{it.Key, numberOf(it.Payload), it.EventID})
	}
	if v := l.judge(b); v.lost != 0 || v.phantom != 0 || v.disorder != 0 {
		s.f.t.Fatalf("%s: of %d events %d lost, %d published that are not in the log, %d aggregates out of order", s.shift.relay.cfg.Name, v.events, v.lost, v.phantom, v.disorder)
	}
}

// unsettled is what a report must say of s: nothing it has settled, and all else.
func (s *stepped) unsettled() (n int64) {
	settled := map[int64]bool{}
	for id, sent := range s.sent {
		settled[id] = sent
	}
	for id, again := range s.mayRepeat {
		settled[id] = settled[id] && !again
	}
	items, _, _ := s.t.window.view()
	for _, it := range items {
		settled[it.LogID] = false
	}
	rows, err := s.f.pool.Query(context.Background(), `SELECT id FROM `+s.f.table("outbox"))
	if err != nil {
		s.f.t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		s.f.t.Fatal(err)
	}
	for _, id := range ids {
		if !settled[id] {
			n++
		}
	}
	return n
}

// Whatever relays and writers were doing when the log was copied, and however far the
// two clusters have come: every relay goes on with exactly what it had not settled.
// The same log moves several times.
func TestRebaseAgainstRandomHistories(t *testing.T) {
	t.Parallel()
	const enough = 50_000 // of transaction ids before the schema is made, to have some below its own
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18} {
		usedUp(t, testkit.Postgres(t, which), enough)
	}
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		created := int64(f.count(`SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`)) - 100
		l := newLedger(f, 9)
		ctx := t.Context()
		draw := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
		relays := []*stepped{f.stepped("one"), f.stepped("two"), f.stepped("three")}
		for _, s := range relays {
			s.width = func() int64 { return 1 + draw.Int64N(30) }
		}
		type writer struct {
			tx  pgx.Tx
			key int
		}
		var open []writer
		end := func(i int, commit bool) {
			w := open[i]
			open = slices.Delete(open, i, i+1)
			if commit {
				f.commit(w.tx)
			} else if err := w.tx.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
		}
		begin := func() {
			key := draw.IntN(9)
			if slices.ContainsFunc(open, func(w writer) bool { return w.key == key }) {
				return // the row is locked
			}
			tx, err := f.pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for range 1 + draw.IntN(4) {
				if err := l.write(ctx, tx, fmt.Sprintf("a%02d", key+1)); err != nil {
					t.Fatal(err)
				}
			}
			open = append(open, writer{tx, key})
		}
		moves := 4
		if long {
			moves = 40
		}
		for move := range moves {
			for range 60 {
				switch k := draw.IntN(10); {
				case k < 3 && len(open) < 3: // of the pool's connections
					begin()
				case k < 6 && len(open) > 0:
					end(draw.IntN(len(open)), draw.IntN(5) > 0)
				case k < 9:
					s := relays[draw.IntN(3)]
					s.step()
					if s.t.active && draw.IntN(2) == 0 {
						s.fill()
						s.deliver(draw.IntN(12))
					}
				default:
					relays[draw.IntN(3)].newHolder()
				}
			}
			for len(open) > 0 { // at the copy, what is open is not there
				end(0, draw.IntN(2) == 0)
			}
			by := []int64{1 << 33, 1 << 40}[draw.IntN(2)]
			if move == 0 && draw.IntN(2) == 0 {
				by = 1500 - created // this cluster has come further than the other
			}
			f.fromElsewhere(by)
			for range draw.IntN(3) { // an application is quicker than who looks after the relays
				if err := pgx.BeginFunc(ctx, f.pool, func(tx pgx.Tx) error { return l.write(ctx, tx, fmt.Sprintf("a%02d", draw.IntN(9)+1)) }); err != nil {
					t.Fatal(err)
				}
			}
			// It has an xid before the rebase, and an id after it.
			early := f.begin(f.session(which))
			if _, err := early.Exec(ctx, `SELECT pg_current_xact_id()`); err != nil {
				t.Fatal(err)
			}
			if err := f.database().check(ctx); !errors.Is(err, ErrOtherCluster) {
				t.Fatalf("before the rebase: %v, want ErrOtherCluster", err)
			}
			dry := f.rebased(RebaseConfig{DryRun: true})
			report := f.rebased(RebaseConfig{By: "test"})
			dry.Rewritten = report.Rewritten
			if fmt.Sprint(dry) != fmt.Sprint(report) || report.Moved != 0 || report.Incarnation != int64(move)+2 {
				t.Fatalf("move %d by %d: the dry run says\n%+v, and it was\n%+v", move, by, dry, report)
			}
			if err := f.database().check(ctx); err != nil {
				t.Fatalf("after the rebase: %v", err)
			}
			for i, s := range relays {
				want := s.unsettled()
				k := slices.IndexFunc(report.Positions, func(p RebasedPosition) bool { return p.Name == s.shift.relay.cfg.Name })
				if p := report.Positions[k]; p.Late+p.Rest != want || (p.FirstID == 0) != (want == 0) {
					t.Fatalf("move %d by %d: %+v, want %d events", move, by, p, want)
				}
				relays[i] = s.continued(f)
				s.stop()
			}
			if draw.IntN(2) == 0 {
				relays[draw.IntN(3)].drain()
			}
			if err := l.write(ctx, early, "a01"); err != nil {
				t.Fatal(err)
			}
			relays[draw.IntN(3)].drain()
			f.commit(early)
		}
		for _, s := range relays {
			s.drain()
			s.judged(l)
		}
		if n := f.count(`SELECT count(*) FROM ` + f.table("relay_request") + ` WHERE action = 'rebase' AND requested_by = 'test' AND done_at IS NOT NULL AND outcome <> ''`); n != 3*moves {
			t.Errorf("%d rebases on record, want %d", n, 3*moves)
		}
	})
}

// inside are all rows of the tables that Rebase may change.
func (f *fixture) inside() string {
	f.t.Helper()
	var all string
	for _, table := range []string{"outbox", "outbox_source", "relay_link", "relay_lease", "relay_request", "parked", "retention"} {
		var s string
		if err := f.pool.QueryRow(context.Background(), `SELECT coalesce(string_agg(t::text, E'\n' ORDER BY t::text), '') FROM `+f.table(table)+` AS t`).Scan(&s); err != nil {
			f.t.Fatal(err)
		}
		all += table + "\n" + s + "\n"
	}
	return all
}

// Rebase does nothing, and says why, while the log is in use or when there is nothing
// to be done; and a failure on its way leaves nothing behind.
func TestRebaseIsRefusedOrWhole(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		ctx := t.Context()
		refused := func(cfg RebaseConfig, want error, says string) {
			t.Helper()
			before := f.inside()
			if _, err := f.rebase(cfg); err == nil || want != nil && !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), says) {
				t.Errorf("Rebase: %v, want one that is %q and says %q", err, want, says)
			}
			if f.inside() != before {
				t.Errorf("Rebase was refused (%s), and has changed something", says)
			}
		}
		f.add("k", 1, 3)
		refused(RebaseConfig{}, ErrNothingToRebase, "Force")
		refused(RebaseConfig{DryRun: true}, ErrNothingToRebase, "relays will run")
		refused(RebaseConfig{By: "two\nlines", LockTimeout: -1}, ErrInvalidConfig, "RebaseConfig.LockTimeout")
		if _, err := Rebase(ctx, nil, RebaseConfig{Schema: "No"}); !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), "RebaseConfig.Schema") || !strings.Contains(err.Error(), "pool is nil") {
			t.Errorf("no pool: %v", err)
		}

		s := newSink()
		cfg := f.config()
		cfg.Lease = time.Minute
		stop := f.start(s, cfg)
		testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == 3 }, "all is published")
		f.fromElsewhere(1 << 35) // behind the relay's back
		refused(RebaseConfig{DryRun: true}, ErrNotAtRest, "test (for")
		if err := stop(); err != nil {
			t.Fatal(err)
		}

		open := f.begin(f.session(which))
		f.append(open, event("k", 4))
		refused(RebaseConfig{LockTimeout: 50 * time.Millisecond}, ErrNotAtRest, "50ms")
		f.commit(open)

		role := f.schema + "_poor"
		f.role(role, `GRANT USAGE ON SCHEMA `+f.schema)
		poor := testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = role })
		if _, err := Rebase(ctx, poor, RebaseConfig{Schema: f.schema}); !errors.Is(err, ErrMissingPrivilege) || strings.Count(err.Error(), "GRANT ") != len(grantsOfRebase)-1 {
			t.Errorf("no privileges: %v", err)
		} else {
			_, list, _ := strings.Cut(err.Error(), "owner: ")
			f.exec(list)
		}

		// The last thing but one fails.
		f.exec(`ALTER TABLE ` + f.table("outbox_source") + ` ADD CONSTRAINT first CHECK (incarnation = 1)`)
		refused(RebaseConfig{}, nil, `violates check constraint "first"`)
		f.exec(`ALTER TABLE ` + f.table("outbox_source") + ` DROP CONSTRAINT first`)

		before := f.inside()
		dry := f.rebased(RebaseConfig{DryRun: true})
		if f.inside() != before {
			t.Error("a dry run has changed something")
		}
		if dry.Found == "" || dry.Incarnation != 2 || len(dry.Positions) != 1 || dry.Positions[0] != (RebasedPosition{Name: "test", SlotTo: 255, Rest: 1, FirstID: 4}) {
			t.Errorf("%+v", dry)
		}
		// With the privileges that were named, and no others.
		if _, err := Rebase(ctx, poor, RebaseConfig{Schema: f.schema}); err != nil {
			t.Fatal(err)
		}
		refused(RebaseConfig{}, ErrNothingToRebase, "")
		if r := f.rebased(RebaseConfig{Force: true}); r.Incarnation != 3 || r.Found != "" || r.Moved != 0 || r.Positions[0] != dry.Positions[0] {
			t.Errorf("forced: %+v", r)
		}
		f.exec(`UPDATE ` + f.table("relay_link") + ` SET round = 1 WHERE n > 1`)
		f.exec(`UPDATE ` + f.table("outbox_source") + ` SET system_identifier = 1`)
		refused(RebaseConfig{}, nil, `the position of "test" is not whole`)
		f.exec(`DELETE FROM ` + f.table("relay_link"))
		f.rebased(RebaseConfig{})
		f.exec(`DELETE FROM ` + f.table("outbox_source"))
		refused(RebaseConfig{Force: true}, ErrOtherCluster, "INSERT INTO")
	})
}
