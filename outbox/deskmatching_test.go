package outbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

func TestMatchingEventsAreAskedForOneByOne(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.parkOneOfEach()
	d, err := NewDesk(f.as(testkit.Admin), "test", DeskConfig{Schema: f.schema, By: "anna, INC-7"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if n, err := d.ReplayMatching(ctx, ParkedFilter{Error: "500"}); n != 2 || err != nil {
		t.Fatalf("replay: %d, %v", n, err)
	}
	if got := f.asked("test"); got != "replay 1, replay 6" {
		t.Errorf("asked for %s", got)
	}
	// Asked for again: they are in the record once. A discard is another request.
	if n, err := d.ReplayMatching(ctx, ParkedFilter{All: true}); n != 0 || !errors.Is(err, ErrNothingMatches) {
		t.Errorf("replay again: %d, %v", n, err)
	}
	if n, err := d.DiscardMatching(ctx, ParkedFilter{Key: "o-1"}); n != 3 || err != nil {
		t.Errorf("discard: %d, %v", n, err)
	}
	if n, err := d.DiscardMatching(ctx, ParkedFilter{All: true}); n != 2 || err != nil {
		t.Errorf("discard the rest: %d, %v", n, err)
	}
	if got := f.asked("test"); got != "replay 1, replay 6, discard 1, discard 2, discard 5, discard 3, discard 6" {
		t.Errorf("asked for %s", got)
	}
	if n := f.count(`SELECT count(*) FROM ` + f.table("relay_request") + ` WHERE requested_by = 'anna, INC-7' AND relay = 'test'`); n != 7 {
		t.Errorf("%d requests are hers", n)
	}
	// What was carried out may be asked for again.
	f.exec(`UPDATE ` + f.table("relay_request") + ` SET done_at = clock_timestamp()`)
	if n, err := d.ReplayMatching(ctx, ParkedFilter{All: true}); n != 2 || err != nil {
		t.Errorf("replay once more: %d, %v", n, err)
	}
}

func TestMatchingIsRefused(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.parkOneOfEach()
	d := f.desk()
	ctx := t.Context()
	replay := func(filter ParkedFilter) error { _, err := d.ReplayMatching(ctx, filter); return err }
	discard := func(filter ParkedFilter) error { _, err := d.DiscardMatching(ctx, filter); return err }
	for _, c := range []struct {
		name string
		err  error
		is   error
		says string
	}{
		{"replay without a condition", replay(ParkedFilter{}), ErrInvalidRequest, `replay parked events of "test": invalid request: the filter has no condition`},
		{"discard without a condition", discard(ParkedFilter{}), ErrInvalidRequest, "ParkedFilter.All"},
		{"replay of what waits", replay(ParkedFilter{States: []ParkedState{ParkedGivenUp, ParkedWaiting}}), ErrInvalidRequest, `"waiting", which nobody can replay`},
		{"discard of discarded", discard(ParkedFilter{States: []ParkedState{ParkedDiscarded}}), ErrInvalidRequest, `"discarded", which nobody can discard`},
		{"replay of nothing", replay(ParkedFilter{Key: "o-2"}), ErrNothingMatches, "Matching and Parked show"},
		{"discard of nothing", discard(ParkedFilter{Key: "nobody's"}), ErrNothingMatches, "Matching and Parked show"},
	} {
		if !errors.Is(c.err, c.is) || !strings.Contains(fmt.Sprint(c.err), c.says) {
			t.Errorf("%s: %v, want %q", c.name, c.err, c.says)
		}
	}
	if got := f.asked("test") + f.asked("other"); got != "" {
		t.Errorf("asked for %s", got)
	}
}

// More than one call asks for at once: in steps, each event once.
func TestMatchingIsBounded(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	const more = 7
	f.exec(`INSERT INTO `+f.table("parked")+` (relay, log_id, slot, state, xid, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT 'test', i, 0, 'given_up', pg_current_xact_id(), 1, gen_random_uuid(), 'order', 'order.placed', 'k', 'application/json', '' FROM generate_series(1, $1) AS i`, MaxMatching+more)
	d := f.desk()
	var steps []int
	for {
		n, err := d.ReplayMatching(t.Context(), ParkedFilter{All: true})
		if errors.Is(err, ErrNothingMatches) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, n)
	}
	if fmt.Sprint(steps) != fmt.Sprint([]int{MaxMatching, more}) {
		t.Errorf("steps of %v", steps)
	}
	if n := f.count(`SELECT count(DISTINCT log_id) FROM ` + f.table("relay_request")); n != MaxMatching+more {
		t.Errorf("%d events asked for", n)
	}
}

// From the filter to the broker, by the relay that runs.
func TestMatchingEventsAreReplayedAndDiscarded(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	s.setRule(func(m *Message, n int) Result {
		if n == 1 {
			return Result{Permanent, fmt.Errorf("refused: no %s", m.Key)}
		}
		return Result{}
	})
	f.backlog(3, "a", "b", "c")
	f.start(s, f.config())
	d, ctx := f.desk(), t.Context()
	eventually(t, func() bool {
		m, err := d.Matching(ctx, ParkedFilter{})
		return err == nil && m.GivenUp == 3 && m.Waiting == 6
	}, "parked")
	s.setRule(nil)
	if n, err := d.DiscardMatching(ctx, ParkedFilter{Error: "NO b", States: []ParkedState{ParkedGivenUp}}); n != 1 || err != nil {
		t.Fatalf("discard: %d, %v", n, err)
	}
	if n, err := d.ReplayMatching(ctx, ParkedFilter{Types: []string{"order.*"}, Key: "a"}); n != 1 || err != nil {
		t.Fatalf("replay: %d, %v", n, err)
	}
	eventually(t, func() bool { return len(s.of("a")) == 3 && len(s.of("b")) == 2 }, "sent")
	s.inOrder(t, "a", 3)
	if got := s.of("b"); fmt.Sprint(got) != "[2 3]" {
		t.Errorf("b: %v: the first was discarded", got)
	}
	if got := s.of("c"); len(got) != 0 {
		t.Errorf("c: %v: nobody asked for it", got)
	}
	all, err := d.Requests(ctx, 0, 10)
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	for _, r := range all {
		if done, err := d.Wait(ctx, r.ID); err != nil || done.Outcome == "" || done.DoneAt.Before(done.At) {
			t.Errorf("%+v, %v", done, err)
		}
	}
}
