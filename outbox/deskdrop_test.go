package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/postbus/postbus/internal/testkit"
)

// left counts the rows of a name that a drop removes.
func (f *fixture) left(name string) (n int) {
	f.t.Helper()
	for _, table := range []string{"relay", "relay_link", "relay_lease", "parked"} {
		n += f.count(`SELECT count(*) FROM `+f.table(table)+` WHERE relay = $1`, name)
	}
	return n
}

func TestDropEndsARelayForGood(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, c := newSink(), calls{}
	s.setRule(c.refuse("bad", 1, Result{Permanent, errRefused}))
	f.backlog(3, "good", "bad")
	other := f.config()
	other.Name = "other"
	f.start(newSink(), other)
	stop := f.start(s, f.config())
	eventually(t, func() bool { return len(f.parkedStates("bad")) == 3 && len(s.of("good")) == 3 }, "parked")
	d, err := NewDesk(f.as(testkit.Admin), "test", DeskConfig{Schema: f.schema, By: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()

	err = d.Drop(ctx, DropConfig{LoseParked: true})
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), `drop "test": it is running: its lease is held by `) || !strings.Contains(err.Error(), "stop every Run of that name") {
		t.Errorf("while it runs: %v", err)
	}
	if p, err := d.PlanDrop(ctx); err != nil || p.Holder == "" || p.HeldUntil.IsZero() || p.Parked != 3 || p.Bytes == 0 || p.Position != 6 {
		t.Errorf("the plan while it runs: %+v, %v", p, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { p, err := d.PlanDrop(ctx); return err == nil && p.Holder == "" }, "the lease is free")

	before := f.left("test")
	err = d.Drop(ctx, DropConfig{})
	if !errors.Is(err, ErrHasParked) || !strings.Contains(err.Error(), "3, with ") || !strings.Contains(err.Error(), "DropConfig.LoseParked") {
		t.Errorf("with parked events: %v", err)
	}
	if p, err := d.PlanDrop(ctx); err != nil || p.Holder != "" || f.left("test") != before {
		t.Errorf("a refused drop left %d rows of %d, %+v, %v", f.left("test"), before, p, err)
	}

	if _, err := d.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if p, err := d.PlanDrop(ctx); err != nil || p.Requests != 1 {
		t.Errorf("the plan: %+v, %v", p, err)
	}
	others := f.left("other")
	if err := d.Drop(ctx, DropConfig{LoseParked: true}); err != nil {
		t.Fatal(err)
	}
	if f.left("test") != 0 || f.left("other") < others {
		t.Errorf("%d rows are left, and %d of %d of the other", f.left("test"), f.left("other"), others)
	}
	all, err := d.Requests(ctx, 0, 10)
	if err != nil || len(all) != 2 || all[0].Action != "pause" || all[0].Outcome != "dropped" || all[0].DoneAt.IsZero() ||
		all[1].Action != "drop" || all[1].Outcome != "dropped, with 3 parked events" || all[1].By != "anna" || all[1].DoneAt.IsZero() {
		t.Errorf("the record: %+v, %v", all, err)
	}
	_, planned := d.PlanDrop(ctx)
	_, asked := d.Pause(ctx)
	for _, err := range []error{d.Drop(ctx, DropConfig{}), planned, asked} {
		if !errors.Is(err, ErrUnknownRelay) || !strings.Contains(err.Error(), "other") {
			t.Errorf("of what is gone: %v", err)
		}
	}
	// Under the name again: it begins anew.
	again := newSink()
	f.start(again, f.config())
	eventually(t, func() bool { return again.distinct() == 6 }, "begun anew")
}

// Discarded events are nobody's any more, and a lost position can be dropped.
func TestDropOfWhatNobodyMisses(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.known("test", "handler")
	f.exec(`UPDATE ` + f.table("relay") + ` SET lost_at = clock_timestamp()`)
	f.putParked("test", 1, "order", "order.placed", "o-1", "", ParkedDiscarded, ParkedDiscarded)
	if p, err := f.desk().PlanDrop(t.Context()); err != nil || p != (DropPlan{}) {
		t.Errorf("the plan: %+v, %v", p, err)
	}
	if err := f.desk().Drop(t.Context(), DropConfig{}); err != nil {
		t.Fatal(err)
	}
	if got := f.asked("test"); got != "drop" || f.left("test") != 0 {
		t.Errorf("asked for %s, %d rows are left", got, f.left("test"))
	}
}

// A holder that was frozen in its transaction, and one that wakes up after it: neither
// leaves a link, and neither takes up again what is gone.
func TestDropPastAFrozenHolder(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	ctx := t.Context()
	db := &database{pool: f.pool, schema: f.schema, timeout: 10 * time.Second}
	frozen := newChain(db, owner{kindRelay, "test"}, allSlots, uuid.New())
	if err := frozen.create(ctx, FromBeginning); err != nil {
		t.Fatal(err)
	}
	asleep := *frozen

	// It has sent its next link, with an event to park, and not its commit.
	tx, err := f.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	link := frozen.link(0)
	if _, err := tx.Exec(ctx, link.sql, link.args...); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO `+f.table("parked")+` (relay, log_id, slot, state, xid, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		VALUES ('test', 1, 0, 'given_up', pg_current_xact_id(), 1, gen_random_uuid(), 'order', 'order.placed', 'k', 'application/json', '')`); err != nil {
		t.Fatal(err)
	}
	dropped := make(chan error, 1)
	go func() { dropped <- f.desk().Drop(ctx, DropConfig{}) }()
	eventually(t, func() bool {
		return f.count(`SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%'||$1||'%relay_link%'`, f.schema) == 1
	}, "the drop waits")
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	// What it has parked in the last moment is not lost.
	if err := <-dropped; !errors.Is(err, ErrHasParked) {
		t.Fatalf("dropped: %v", err)
	}
	if err := f.desk().Drop(ctx, DropConfig{LoseParked: true}); err != nil {
		t.Fatal(err)
	}
	if err := asleep.advance(ctx, 0, true, db.register(asleep.who)); !errors.Is(err, errFenced) {
		t.Errorf("the frozen holder wrote on: %v", err)
	}
	if n := f.left("test"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// Who asks while somebody drops is told so, or gets the outcome: no request waits
// for ever, to be carried out by whoever takes the name next.
func TestAskingWhileItIsDropped(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	ctx := t.Context()
	for i := range 5 {
		f.known("test", "relay")
		done := make(chan error, 4)
		for range cap(done) {
			go func() {
				for {
					if _, err := f.desk().Pause(ctx); err != nil {
						done <- err
						return
					}
				}
			}()
		}
		eventually(t, func() bool {
			return f.count(`SELECT count(*) FROM `+f.table("relay_request")+` WHERE done_at IS NULL`) > 3
		}, "they ask")
		if err := f.desk().Drop(ctx, DropConfig{}); err != nil {
			t.Fatal(err)
		}
		for range cap(done) {
			if err := <-done; !errors.Is(err, ErrUnknownRelay) {
				t.Errorf("asking ended with %v", err)
			}
		}
		if n := f.count(`SELECT count(*) FROM ` + f.table("relay_request") + ` WHERE done_at IS NULL`); n != 0 {
			t.Errorf("round %d: %d requests wait for ever", i, n)
		}
	}
}

// Something in the way of the last step leaves everything as it was, and the lease free.
func TestDropThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	ctx := t.Context()
	f.known("test", "relay")
	f.exec(`CREATE FUNCTION ` + f.table("no") + `() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$`)
	f.exec(`CREATE TRIGGER no BEFORE DELETE ON ` + f.table("relay") + ` FOR EACH ROW EXECUTE FUNCTION ` + f.table("no") + `()`)
	err := f.desk().Drop(ctx, DropConfig{})
	if err == nil || !strings.Contains(fmt.Sprint(err), "not today") || !strings.Contains(err.Error(), `drop "test"`) {
		t.Fatalf("got %v", err)
	}
	f.exec(`DROP TRIGGER no ON ` + f.table("relay"))
	if got := f.asked("test"); got != "" {
		t.Errorf("asked for %s", got)
	}
	if err := f.desk().Drop(ctx, DropConfig{}); err != nil { // the lease was given up
		t.Fatal(err)
	}
}

// A standby that has never held the lease does not begin a dropped name anew.
func TestDropWhileAnotherProcessStandsBy(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.backlog(3, "k")
	first, second := newSink(), newSink()
	stop := f.start(first, f.config())
	eventually(t, func() bool { return first.distinct() == 3 }, "the first one works")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// As if Drop held the lease: the standby cannot come in between.
	exec := func(sql string) {
		t.Helper()
		if _, err := f.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`UPDATE ` + f.table("relay_lease") + ` SET holder = gen_random_uuid(), expires = clock_timestamp() + interval '1 hour'`)
	b := newBook(t)
	cfg := f.config()
	cfg.Logger = slog.New(b)
	relay, err := NewRelay(f.as(testkit.Relay), second, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := async(func() error { return relay.Run(t.Context()) })
	eventually(t, func() bool { return b.times("stands by") == 1 }, "another one stands by")
	exec(`WITH a AS (DELETE FROM ` + f.table("relay_link") + `), b AS (DELETE FROM ` + f.table("relay") + `) DELETE FROM ` + f.table("relay_lease"))
	if err := <-ended; !errors.Is(err, ErrDropped) {
		t.Errorf("Run of the standby: %v, want ErrDropped", err)
	}
	if n := second.distinct(); n != 0 {
		t.Errorf("the standby has published %d events of a dropped relay", n)
	}
}
