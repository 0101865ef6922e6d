package outbox

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
)

// carriedOut asks, waits, and gives the outcome.
func (f *fixture) carriedOut(ask func() (RequestID, error)) Request {
	f.t.Helper()
	id, err := ask()
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := f.desk().Wait(f.t.Context(), id)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// From the desk to the holder of the lease: what was asked for has become of it.
func TestSteeredFromTheDesk(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	f.start(s, f.config())
	f.add("a", 1, 5)
	eventually(t, func() bool { return s.distinct() == 5 }, "sent")
	d, ctx := f.desk(), t.Context()

	// Paused: what is appended waits, also after another look at the log.
	if r := f.carriedOut(func() (RequestID, error) { return d.Pause(ctx) }); r.Refused() {
		t.Errorf("paused: %+v", r)
	}
	f.add("a", 6, 5)
	f.carriedOut(func() (RequestID, error) { return d.SetRate(ctx, 1000) })
	if n := s.distinct(); n != 5 {
		t.Errorf("%d events were sent while it was paused", n-5)
	}

	// A skip of all that waits: the plan says how many.
	end := int64(f.count(`SELECT max(id) FROM ` + f.table("outbox")))
	plan, err := d.PlanSkip(ctx, end+1)
	if err != nil || plan.Events != 5 || !plan.Counted || plan.To != end {
		t.Errorf("the plan: %+v, %v", plan, err)
	}
	if r := f.carriedOut(func() (RequestID, error) { return d.SkipTo(ctx, end+1) }); r.Refused() {
		t.Errorf("skipped: %+v", r)
	}
	f.carriedOut(func() (RequestID, error) { return d.Resume(ctx) })
	f.carriedOut(func() (RequestID, error) { return d.Unlimited(ctx) })
	f.add("a", 11, 2)
	eventually(t, func() bool { return s.distinct() == 7 }, "the later ones are sent")
	if got := fmt.Sprint(s.of("a")); got != "[1 2 3 4 5 11 12]" {
		t.Errorf("sent %s: what was skipped is left out", got)
	}

	// Only some types, then all again: what was passed over does not come by itself.
	f.carriedOut(func() (RequestID, error) { return d.SetTypes(ctx, "order.*") })
	f.tx(func(tx pgx.Tx) error {
		stock := event("s", 1)
		stock.EventType = "stock.moved"
		return f.log.Append(ctx, tx, stock, event("a", 13))
	})
	eventually(t, func() bool { return s.distinct() == 8 }, "the order's is sent")
	f.carriedOut(func() (RequestID, error) { return d.AllTypes(ctx) })
	if got := s.of("s"); len(got) != 0 {
		t.Errorf("sent of a type that is not let through: %v", got)
	}

	// A rewind brings all of it: what was skipped, passed over, and sent.
	eventually(t, func() bool {
		plan, err = d.PlanRewind(ctx, 1)
		return err == nil && plan.Events == 14
	}, "the position has passed all")
	if r := f.carriedOut(func() (RequestID, error) { return d.RewindToTime(ctx, time.Now().Add(-time.Hour)) }); r.Refused() || r.LogID != 1 {
		t.Errorf("rewound: %+v", r)
	}
	eventually(t, func() bool { return s.distinct() == 14 }, "all have come")
}

// What was in order when it was asked for, and is not any more when it is carried out.
func TestRequestThatCameTooLate(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	f.start(s, f.config())
	f.add("a", 1, 5)
	d, ctx := f.desk(), t.Context()
	eventually(t, func() bool { p, err := d.PlanDrop(ctx); return err == nil && p.Position == 5 && s.distinct() == 5 }, "sent")
	for action, id := range map[string]int64{"skip": 1, "rewind": 100} {
		r := f.carriedOut(func() (id2 RequestID, err error) {
			err = f.pool.QueryRow(ctx, `INSERT INTO `+f.table("relay_request")+` (relay, action, log_id) VALUES ('test', $1, $2) RETURNING id`, action, id).Scan(&id2)
			return id2, err
		})
		if !r.Refused() || r.Action != action || r.LogID != id {
			t.Errorf("%s: %+v", action, r)
		}
	}
	f.add("a", 6, 1)
	eventually(t, func() bool { return s.distinct() == 6 }, "it goes on")
}
