package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
)

// quick is a config whose second look comes soon.
func (f *fixture) quick() CheckConfig {
	return CheckConfig{Schema: f.schema, Confirm: time.Millisecond}
}

func (f *fixture) check(cfg CheckConfig) []*Problem {
	f.t.Helper()
	err := Check(context.Background(), f.as(testkit.Admin), cfg)
	problems := Problems(err)
	if err != nil && len(problems) == 0 {
		f.t.Fatal(err)
	}
	return problems
}

// healthy fails if anything is wrong.
func (f *fixture) healthy(when string, cfg CheckConfig) {
	f.t.Helper()
	for _, p := range f.check(cfg) {
		f.t.Errorf("%s: %s", when, p)
	}
}

// one fails unless exactly one thing is wrong, of that kind, said with these words.
func (f *fixture) one(cfg CheckConfig, kind ProblemKind, words ...string) {
	f.t.Helper()
	problems := f.check(cfg)
	if len(problems) != 1 || problems[0].Kind != kind {
		f.t.Errorf("problems %v, want one %s", problems, kind)
		return
	}
	for _, w := range append(words, problems[0].Relay, string(kind), "docs/operations.md") {
		if !strings.Contains(problems[0].Text, w) {
			f.t.Errorf("%q does not say %q", problems[0].Text, w)
		}
	}
	f.t.Log(problems[0])
}

func (f *fixture) setLease(name, expires string) {
	f.t.Helper()
	f.exec(`INSERT INTO `+f.table("relay_lease")+` (relay, slot_from, slot_to, holder, expires) VALUES ($1, 0, 255, gen_random_uuid(), `+expires+`)
		ON CONFLICT (relay, slot_from, slot_to) DO UPDATE SET expires = excluded.expires`, name)
}

const (
	held = `clock_timestamp() + interval '1 hour'`
	aged = ` SET at = at - interval '10 minutes'`
)

// Nothing is wrong with a log that nobody reads yet, with a relay that has just
// begun, is idle, works, lets only some types through, has begun from now on, or
// stands beside a transaction that is open for long.
func TestCheckOfWhatIsHealthy(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		f.healthy("empty, and nobody reads it", f.quick())
		f.add("k", 1, 3)
		f.exec(`UPDATE ` + f.table("outbox") + aged)
		f.healthy("with old events, and nobody reads it", f.quick())

		cfg := f.config()
		cfg.StartAt = FromNow
		now := newSink()
		f.start(now, cfg)
		testkit.Eventually(t, soon, func() bool { return len(f.stats().Relays) == 1 && f.statsOf("test").Position.Link > 0 }, "begun")
		f.healthy("from now on", f.quick())

		cfg.Name, cfg.StartAt = "all", FromBeginning
		all := newSink()
		f.start(all, cfg)
		testkit.Eventually(t, soon, func() bool { return all.distinct() == 3 }, "published")

		open := f.begin(f.session(which))
		f.append(open, event("open", 1))
		f.exec(`UPDATE ` + f.table("outbox") + ` SET at = at - interval '10 minutes' WHERE partition_key = 'k'`)
		if _, err := open.Exec(t.Context(), `UPDATE `+f.table("outbox")+` SET at = at - interval '10 minutes' WHERE partition_key = 'open'`); err != nil {
			t.Fatal(err)
		}
		f.add("k", 4, 3)
		f.healthy("beside an open transaction", f.quick())
		testkit.Eventually(t, soon, func() bool { return all.distinct() == 6 && now.distinct() == 3 }, "published")
		f.commit(open)
		// No signal tells of it: the relays find it at their next look.
		f.healthy("a moment after its commit", CheckConfig{Schema: f.schema})
		testkit.Eventually(t, soon, func() bool { return all.distinct() == 7 && now.distinct() == 4 }, "published")
		f.healthy("at rest", f.quick())
	})
}

// A relay that lets only some types through passes the others: they are not
// unpublished for ever.
func TestCheckOfARelayThatLeavesTypesOut(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	out := newSink()
	f.start(out, f.config())
	testkit.Eventually(t, soon, func() bool { return len(f.stats().Relays) == 1 && f.statsOf("test").Position.Link > 0 }, "begun")
	if _, err := f.desk().SetTypes(t.Context(), "stock.*"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, soon, func() bool { return f.statsOf("test").Types != nil }, "told")
	f.add("k", 1, 3)
	testkit.Eventually(t, soon, func() bool { return f.statsOf("test").Position.ID == 3 }, "passed")
	f.exec(`UPDATE ` + f.table("outbox") + aged)
	f.healthy("with types left out", f.quick())
	if n := out.distinct(); n != 0 {
		t.Errorf("%d events were published", n)
	}

	// What lies below skip_below is nobody's any more, even if it is committed late.
	f.exec(`UPDATE ` + f.table("relay") + ` SET skip_below = 100`)
	if r := f.statsOf("test"); r.Backlog != 0 {
		t.Errorf("backlog %d", r.Backlog)
	}
}

// The broker is gone, or the publisher hangs: the lease is renewed, the position
// stands, events grow old.
func TestCheckOfARelayThatIsAliveAndPublishesNothing(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	f.add("k", 1, 3)
	f.start(s, f.config())
	testkit.Eventually(t, soon, func() bool { return s.distinct() == 3 && f.statsOf("test").Position.ID == 3 }, "published")

	refuse := func(*Message, int) Result {
		return Result{Status: Passing, Err: fmt.Errorf("gone: %w", ErrUnavailable)}
	}
	s.setRule(refuse)
	f.add("k", 4, 3)
	xid := uint64(f.count(`SELECT xid::text::bigint FROM ` + f.table("outbox") + ` WHERE id = 4`))
	testkit.Eventually(t, soon, func() bool { // not in a round that was begun before it was committed
		p := stored(f, "test")
		return !p.finished() && p.round.has(xid)
	}, "in its round")
	f.healthy("for a moment", f.quick())
	f.makeOld("test")
	f.one(f.quick(), ProblemStuck, `"test"`, "event 4 ", "backlog is up to 3 events", "renews its lease", "broker")
	patient := f.quick()
	patient.MaxAge = time.Hour
	f.healthy("with an hour allowed", patient)

	s.setRule(nil)
	testkit.Eventually(t, soon, func() bool { return s.distinct() == 6 && f.statsOf("test").Position.ID == 6 }, "published")
	f.healthy("with the broker back", f.quick())
}

// makeOld makes everything that a relay has to do ten minutes older, as if time had
// passed in which nothing moved.
func (f *fixture) makeOld(name string) {
	f.t.Helper()
	f.exec(`UPDATE ` + f.table("outbox") + aged)
	f.exec(`UPDATE `+f.table("relay_link")+aged+` WHERE relay = $1`, name)
}

// One that starts over again and again writes a link each time, and gets nowhere.
func TestCheckOfARelayThatStartsOverAndOver(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.add("k", 1, 3)
	s := f.stepped("test")
	f.setLease("test", held)
	s.step()
	f.makeOld("test")
	for range 3 {
		s.newHolder()
	}
	if r := f.statsOf("test"); r.Position.LinkAt.Before(r.OldestUnpublished.Add(time.Minute)) {
		t.Fatalf("no fresh links: %+v", r)
	}
	f.one(f.quick(), ProblemStuck, "does not move")

	s.fill()
	s.deliver(1)
	items, _, _ := s.t.window.view()
	s.t.settled = 1
	if err := s.t.link(t.Context(), items, nil); err != nil {
		t.Fatal(err)
	}
	f.one(f.quick(), ProblemBehind, "event 2 ", "ids a second")
	s.drain()
	f.healthy("drained", f.quick())
}

// A transaction that was open for long and has committed since is found as late, and
// is overdue only once a round has not taken it.
func TestCheckOfLateEvents(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := f.stepped("test")
	f.setLease("test", held)
	open := f.begin(f.session(testkit.PG15))
	f.append(open, event("late", 1))
	f.add("k", 1, 1)
	s.drain()
	if _, err := open.Exec(t.Context(), `UPDATE `+f.table("outbox")+aged); err != nil {
		t.Fatal(err)
	}
	f.commit(open)
	f.healthy("just committed, the last round is young", f.quick())
	f.exec(`UPDATE ` + f.table("relay_link") + aged)
	f.one(f.quick(), ProblemStuck, "event 1 ")
	s.drain()
	f.healthy("published", f.quick())
}

// Nobody runs it: at first that is a restart, then trouble, and at last its position
// is a thing that keeps the log.
func TestCheckOfARelayThatNobodyRuns(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := f.stepped("test")
	f.add("k", 1, 2)
	s.drain()
	f.add("k", 3, 5)
	f.exec(`UPDATE ` + f.table("relay") + ` SET created_at = created_at - interval '30 days'`)
	lease := func(ago string) { f.t.Helper(); f.setLease("test", `clock_timestamp() - interval '`+ago+`'`) }

	lease("5 seconds")
	f.healthy("a restart", f.quick())
	lease("10 minutes")
	f.one(f.quick(), ProblemNotRunning, "10m", "up to 5 events")
	lease("3 days")
	f.one(f.quick(), ProblemAbandoned, "up to 5 events", "Desk.Drop")
	s.drain()
	f.one(f.quick(), ProblemNotRunning, "up to 0 events") // it keeps nothing: it is only not there

	f.setLease("test", `'-infinity'`) // given up by a clean stop, after the last link
	f.healthy("stopped just now", f.quick())
	f.exec(`UPDATE ` + f.table("relay_link") + aged)
	f.one(f.quick(), ProblemNotRunning)

	cfg := f.quick()
	cfg.Relays = []string{"other"}
	f.one(cfg, ProblemUnknown, `"other"`)
	f.setLease("other", held)
	f.healthy("one of two is asked for", cfg)
}

func TestCheckOfPauseAndLoss(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := f.stepped("test")
	f.setLease("test", held)
	f.add("k", 1, 2)
	s.drain()
	f.add("k", 3, 5)
	f.makeOld("test")
	f.one(f.quick(), ProblemStuck)
	f.exec(`UPDATE ` + f.table("relay") + ` SET paused = true`)
	f.healthy("paused", f.quick())
	cfg := f.quick()
	cfg.MaxPaused = time.Minute
	f.one(cfg, ProblemPaused, "10m", "up to 5 events", "Desk.Resume") // since its last link: nothing better is known
	f.exec(`INSERT INTO ` + f.table("relay_request") + ` (relay, action, done_at) VALUES ('test', 'pause', clock_timestamp() - interval '2 hours')`)
	f.one(cfg, ProblemPaused, "2h0m")

	f.exec(`UPDATE ` + f.table("relay") + ` SET lost_at = clock_timestamp()`)
	f.one(cfg, ProblemLost, "stood at id 2", "Desk.Drop")
}

func TestCheckOfParkedEventsAndRequests(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.setLease("test", held)
	f.exec(`INSERT INTO ` + f.table("relay") + ` (relay, kind) VALUES ('test', 'handler')`)
	f.parkedRow("test", 1, "retrying", "k1")
	f.parkedRow("test", 2, "waiting", "k1")
	f.parkedRow("test", 3, "discarded", "k2")
	f.healthy("some are being tried", f.quick())

	cfg := f.quick()
	cfg.MaxParked = 1
	f.one(cfg, ProblemParked, "at least 2 events", "1 retrying", "1 key", "where 1 may be", `durable handler "test"`)
	f.exec(`UPDATE ` + f.table("parked") + ` SET parked_at = parked_at - interval '2 hours'`)
	f.one(f.quick(), ProblemRetrying, "2h0m", "1 event waiting")
	f.exec(`UPDATE ` + f.table("parked") + ` SET state = 'given_up' WHERE log_id = 1`)
	f.one(f.quick(), ProblemGivenUp, "1 event given up", "1 key ", "Desk.Parked")
	cfg = f.quick()
	cfg.MaxGivenUp = 1
	f.healthy("one given up is allowed", cfg)
	cfg.MaxGivenUp, cfg.MaxParked = Unlimited, Unlimited
	f.healthy("any number is allowed", cfg)

	f.exec(`INSERT INTO ` + f.table("relay_request") + ` (relay, action, requested_at, log_id) VALUES ('test', 'replay', clock_timestamp(), 1)`)
	f.healthy("a request is fresh", cfg)
	f.exec(`UPDATE ` + f.table("relay_request") + ` SET requested_at = clock_timestamp() - interval '5 minutes'`)
	f.one(cfg, ProblemRequests, "1 request wait", "5m", "renews its lease")
	f.exec(`UPDATE ` + f.table("relay_request") + ` SET relay = 'tset'`)
	f.one(cfg, ProblemRequests, `"tset"`, "nobody has ever run")
}

// Only what both looks have seen is told; a caller who has no time gets the first.
func TestCheckLooksTwice(t *testing.T) {
	t.Parallel()
	a, b := &Problem{Relay: "a", Kind: ProblemStuck, Text: "first"}, &Problem{Relay: "a", Kind: ProblemStuck, Text: "second"}
	c, d := &Problem{Relay: "a", Kind: ProblemBehind}, &Problem{Relay: "b", Kind: ProblemStuck}
	if got := inBoth([]*Problem{a, c}, []*Problem{d, b}); len(got) != 1 || got[0] != b {
		t.Errorf("%v", got)
	}

	f := setUp(t, testkit.PG15)
	f.setLease("test", `clock_timestamp() - interval '10 minutes'`)
	f.exec(`INSERT INTO ` + f.table("relay") + ` (relay, kind, created_at) VALUES ('test', 'relay', clock_timestamp() - interval '1 hour')`)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if p := Problems(Check(ctx, f.pool, CheckConfig{Schema: f.schema, Confirm: time.Hour})); len(p) != 1 || p[0].Kind != ProblemNotRunning {
		t.Errorf("within two seconds: %v", p)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if err := Check(ctx, f.pool, f.quick()); !errors.Is(err, context.Canceled) || Problems(err) != nil {
		t.Errorf("without time: %v", err)
	}
}

func TestCheckRefusals(t *testing.T) {
	t.Parallel()
	err := Check(t.Context(), nil, CheckConfig{Schema: "No", Relays: []string{"A"}, MaxAge: -1, Confirm: -1, MaxParked: -2, MaxGivenUp: -2})
	if !errors.Is(err, ErrInvalidConfig) || Problems(err) != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"pool is nil", "Schema", "Relays", "MaxAge", "Confirm", "MaxParked", "MaxGivenUp"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not name %s", err, w)
		}
	}
	f := setUp(t, testkit.PG15)
	err = Check(t.Context(), f.pool, CheckConfig{Schema: f.schema + "_none"})
	if err == nil || Problems(err) != nil {
		t.Errorf("no schema: %v", err)
	}
	all := []ProblemKind{ProblemStuck, ProblemBehind, ProblemNotRunning, ProblemAbandoned, ProblemLost, ProblemPaused, ProblemGivenUp, ProblemParked, ProblemRetrying, ProblemRequests, ProblemUnknown}
	if slices.Sort(all); len(slices.Compact(all)) != 11 {
		t.Error("two kinds of one name")
	}
}
