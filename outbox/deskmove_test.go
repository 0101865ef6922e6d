package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
)

// put writes one row of the log with the id and time given.
func (f *fixture) put(db interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, id int64, at time.Time, eventType string) {
	f.t.Helper()
	var one int
	if err := db.QueryRow(f.t.Context(), `INSERT INTO `+f.table("outbox")+` (id, at, slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		VALUES ($1, $2, 0, 1, gen_random_uuid(), 'order', $3, 'k', 'application/json', '') RETURNING 1`, id, at, eventType).Scan(&one); err != nil {
		f.t.Fatal(err)
	}
}

// at puts relay "test" behind a finished round up to id, in a log that has given out
// ids up to end.
func (f *fixture) at(id, end int64) {
	f.t.Helper()
	f.exec(`INSERT INTO ` + f.table("relay") + ` (relay, kind) VALUES ('test', 'relay') ON CONFLICT DO NOTHING`)
	f.exec(`DELETE FROM ` + f.table("relay_link"))
	f.exec(`INSERT INTO `+f.table("relay_link")+` (relay, slot_from, slot_to, n, holder, round, last_id, prev_snapshot, prev_id, snapshot, seen_id, upper_id)
		VALUES ('test', 0, 255, 7, gen_random_uuid(), 7, $1, '1:1:', 0, pg_current_snapshot(), $1, $1)`, id)
	f.exec(`SELECT setval('`+f.table("outbox_id")+`', $1)`, end)
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestIDOfATime(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	d, ctx := f.desk(), t.Context()
	id := func(at time.Time) int64 {
		t.Helper()
		id, err := d.IDAt(ctx, at)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	if got := id(noon); got != 1 {
		t.Errorf("an empty log: %d", got)
	}
	// Ten seconds between them, and gaps, the last of them at the end.
	ids := []int64{3, 4, 5, 1000, 1001, 1_000_000, 5_000_000_000}
	for i, n := range ids {
		f.put(f.pool, n, noon.Add(time.Duration(i)*10*time.Second), "order.placed")
	}
	f.exec(`SELECT setval('` + f.table("outbox_id") + `', 6000000000)`)
	for i := range ids {
		below := int64(1)
		if i > 0 {
			below = ids[i-1] + 1
		}
		at := noon.Add(time.Duration(i) * 10 * time.Second)
		for _, off := range []time.Duration{-5 * time.Second, 0, time.Second / 2, time.Second} {
			if got := id(at.Add(off)); got != below {
				t.Errorf("event %d, %s from its time: %d, want %d", ids[i], off, got, below)
			}
		}
		if got := id(at.Add(2 * time.Second)); got != ids[i]+1 {
			t.Errorf("after event %d: %d", ids[i], got)
		}
	}
	// A transaction that is open, of ids between two that are known: it is never below.
	tx, err := f.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	f.put(tx, 2000, noon.Add(49*time.Second), "order.placed")
	if got := id(noon.Add(49 * time.Second)); got != 1002 {
		t.Errorf("with an open transaction: %d", got)
	}
	// The beginning is gone.
	f.exec(`DELETE FROM ` + f.table("outbox") + ` WHERE id <= 1000`)
	f.exec(`UPDATE ` + f.table("retention") + ` SET floor = 1000`)
	if got := id(noon); got != 1001 {
		t.Errorf("before what is kept: %d", got)
	}
	for what, at := range map[string]time.Time{"the time is zero": {}, "the time is to come": time.Now().Add(time.Hour)} {
		if _, err := d.IDAt(ctx, at); !errors.Is(err, ErrInvalidRequest) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Sessions that were held up between drawing the id and reading the clock.
func TestIDOfATimeAmongHeldUpSessions(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	const n = 2000
	f.exec(`INSERT INTO `+f.table("outbox")+` (at, slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT $1::timestamptz + i * interval '10 ms' + (i * 7919 % 990) * interval '1 ms', 0, 1, gen_random_uuid(), 'order', 'order.placed', 'k', 'application/json', ''
		FROM generate_series(1, $2) AS i`, noon, n)
	for i := 0; i < 2200; i += 37 {
		at := noon.Add(time.Duration(i) * 10 * time.Millisecond)
		id, err := f.desk().IDAt(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		if missed := f.count(`SELECT count(*) FROM `+f.table("outbox")+` WHERE id < $1 AND at >= $2`, id, at); missed != 0 {
			t.Errorf("%s: id %d misses %d events", at, id, missed)
		}
		if more := f.count(`SELECT count(*) FROM `+f.table("outbox")+` WHERE id >= $1 AND at < $2::timestamptz - interval '2 seconds'`, id, at); more != 0 {
			t.Errorf("%s: id %d has %d events of long before", at, id, more)
		}
	}
}

func TestMovesAreAskedFor(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	for i := range 20 {
		f.put(f.pool, int64(i+1), noon.Add(time.Duration(i)*time.Minute), "order.placed")
	}
	f.at(10, 20)
	d, ctx := f.desk(), t.Context()
	for _, ask := range []func() (RequestID, error){
		func() (RequestID, error) { return d.RewindTo(ctx, 1) },
		func() (RequestID, error) { return d.RewindTo(ctx, 10) },
		func() (RequestID, error) { return d.RewindToTime(ctx, noon) },
		func() (RequestID, error) { return d.RewindToTime(ctx, noon.Add(4*time.Minute)) },
		func() (RequestID, error) { return d.SkipTo(ctx, 11) },
		func() (RequestID, error) { return d.SkipTo(ctx, 21) },
		func() (RequestID, error) { return d.SkipToTime(ctx, noon.Add(14*time.Minute)) },
		func() (RequestID, error) { return d.SkipToTime(ctx, time.Now()) },
	} {
		if id, err := ask(); err != nil || id == 0 {
			t.Fatalf("request %d: %v", id, err)
		}
	}
	if got, want := f.asked("test"), "rewind 1, rewind 10, rewind 1, rewind 5, skip 11, skip 21, skip 15, skip 21"; got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
}

func TestMovesThatCannotBeMeantAreRefused(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	for i := range int64(20) {
		f.put(f.pool, i+1, noon.Add(time.Duration(i)*time.Minute), "order.placed")
	}
	f.at(10, 20)
	d, ctx := f.desk(), t.Context()
	type move func(context.Context, int64) (RequestID, error)
	try := func(name string, is error, says string, plan func(context.Context, int64) (Move, error), m move, id int64) {
		t.Helper()
		_, asked := m(ctx, id)
		_, planned := plan(ctx, id)
		for _, err := range []error{asked, planned} {
			if !errors.Is(err, is) || !strings.Contains(fmt.Sprint(err), says) || !strings.Contains(fmt.Sprint(err), `"test"`) {
				t.Errorf("%s: %v, want %q", name, err, says)
			}
		}
	}
	try("rewind to nothing", ErrInvalidRequest, "log ids begin with 1", d.PlanRewind, d.RewindTo, 0)
	try("rewind below", ErrInvalidRequest, "log ids begin with 1", d.PlanRewind, d.RewindTo, -5)
	try("rewind ahead", ErrWrongWay, "its position is at id 10, so that this is no rewind", d.PlanRewind, d.RewindTo, 11)
	try("skip to nothing", ErrInvalidRequest, "log ids begin with 1", d.PlanSkip, d.SkipTo, 0)
	try("skip back", ErrWrongWay, "everything up to id 10 is sent or left out already", d.PlanSkip, d.SkipTo, 10)
	try("skip into nowhere", ErrOutsideLog, "its last id is 20: skip to 21", d.PlanSkip, d.SkipTo, 22)

	f.exec(`UPDATE ` + f.table("relay") + ` SET skip_below = 16`)
	try("skip less than before", ErrWrongWay, "up to id 15", d.PlanSkip, d.SkipTo, 15)
	if m, err := d.PlanRewind(ctx, 12); err != nil || m.To != 15 {
		t.Errorf("a rewind that takes back a part of the skip: %+v, %v", m, err)
	}

	f.exec(`DELETE FROM ` + f.table("outbox") + ` WHERE id <= 5`)
	f.exec(`UPDATE ` + f.table("retention") + ` SET floor = 5`)
	try("rewind to what is gone", ErrOutsideLog, "retention may have taken events up to id 5: rewind to 6 or later", d.PlanRewind, d.RewindTo, 5)
	for name, at := range map[string]time.Time{"long ago": noon.Add(-time.Hour), "just gone": noon.Add(4*time.Minute + time.Second)} {
		if _, err := d.RewindToTime(ctx, at); !errors.Is(err, ErrOutsideLog) || !strings.Contains(err.Error(), "RewindTo(6) brings back all that is left") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.RewindToTime(ctx, time.Now()); !errors.Is(err, ErrWrongWay) {
		t.Errorf("rewind to now: %v", err)
	}
	if _, err := d.SkipToTime(ctx, noon); !errors.Is(err, ErrWrongWay) {
		t.Errorf("skip to what was sent: %v", err)
	}
	_, back := d.RewindToTime(ctx, time.Time{})
	_, ahead := d.SkipToTime(ctx, time.Now().Add(time.Hour))
	if !errors.Is(back, ErrInvalidRequest) || !errors.Is(ahead, ErrInvalidRequest) {
		t.Errorf("no time, or one to come: %v, %v", back, ahead)
	}
	if got := f.asked("test"); got != "" {
		t.Errorf("asked for %s", got)
	}
	if id, err := d.RewindTo(ctx, 6); err != nil || id == 0 {
		t.Errorf("rewind to all that is left: %v", err)
	}
}

func TestPlansOfMoves(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.exec(`INSERT INTO `+f.table("outbox")+` (id, at, slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT i * 100, $1::timestamptz + i * interval '1 second', 0, 1, gen_random_uuid(), 'order', CASE i % 2 WHEN 0 THEN 'order.placed' ELSE 'order_line.added' END, 'k', 'application/json', ''
		FROM generate_series(1, 3000) AS i`, noon)
	f.put(f.pool, 1e12, noon.Add(time.Hour), "order.placed") // far away, behind a gap
	f.at(150_000, 2e12)
	d, ctx := f.desk(), t.Context()
	plan := func(m Move, err error) Move {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		m.Since = m.Since.UTC()
		return m
	}
	second := func(i int) time.Time { return noon.Add(time.Duration(i) * time.Second) }
	for name, c := range map[string]struct{ got, want Move }{
		"rewind to the beginning": {plan(d.PlanRewind(ctx, 1)), Move{1, 150_000, 1500, second(1), true}},
		"rewind a little":         {plan(d.PlanRewind(ctx, 149_950)), Move{149_950, 150_000, 1, second(1500), true}},
		"skip a little":           {plan(d.PlanSkip(ctx, 150_201)), Move{150_001, 150_200, 2, second(1501), true}},
		"skip over the gap":       {plan(d.PlanSkip(ctx, 2e12+1)), Move{150_001, 2e12, 1501, second(1501), true}},
		"skip nothing":            {plan(d.PlanSkip(ctx, 150_001)), Move{150_001, 150_000, 0, time.Time{}, true}},
	} {
		if c.got != c.want {
			t.Errorf("%s: %+v, want %+v", name, c.got, c.want)
		}
	}
	f.exec(`UPDATE ` + f.table("relay") + ` SET types = '{order_line.*}'`)
	if m := plan(d.PlanRewind(ctx, 1)); m.Events != 750 || m.Since != second(1) {
		t.Errorf("of one type: %+v", m)
	}
	// In the middle of a round: it counts from 0, what the rounds before have seen is passed.
	f.exec(`UPDATE ` + f.table("relay_link") + ` SET last_id = 100, prev_id = 120000`)
	if m := plan(d.PlanRewind(ctx, 1)); m.To != 120_000 {
		t.Errorf("in the late part of a round: %+v", m)
	}
	if got := f.asked("test"); got != "" {
		t.Errorf("asked for %s", got)
	}
}
