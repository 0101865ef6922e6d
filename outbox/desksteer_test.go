package outbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

func TestSteeringIsAskedFor(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			f.pool = testkit.Postgres(t, testkit.PG15, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			f.known("test", "relay")
			ctx := t.Context()
			d, err := NewDesk(f.as(testkit.Admin), "test", DeskConfig{Schema: f.schema, By: "anna"})
			if err != nil {
				t.Fatal(err)
			}
			before := RequestID(0)
			for _, ask := range []func() (RequestID, error){
				func() (RequestID, error) { return d.Pause(ctx) },
				func() (RequestID, error) { return d.Resume(ctx) },
				func() (RequestID, error) { return d.SetRate(ctx, 0.5) },
				func() (RequestID, error) { return d.Unlimited(ctx) },
				func() (RequestID, error) { return d.SetTypes(ctx, "stock.*", "order.placed", "stock.*") },
				func() (RequestID, error) { return d.AllTypes(ctx) },
			} {
				id, err := ask()
				if err != nil || id <= before {
					t.Fatalf("request %d after %d: %v", id, before, err)
				}
				before = id
			}
			want := "pause, resume, rate 0.5, rate, types [order.placed stock.*], types"
			if got := f.asked("test"); got != want {
				t.Errorf("asked for %s, want %s", got, want)
			}
			all, err := d.Requests(ctx, before-1, 5)
			if err != nil || len(all) != 1 || all[0].ID != before || all[0].By != "anna" || all[0].At.IsZero() || !all[0].DoneAt.IsZero() || all[0].Outcome != "" {
				t.Errorf("the last one is %+v, %v", all, err)
			}
			if _, err := f.desk().Pause(ctx); err != nil { // nobody said who
				t.Fatal(err)
			}
			if n := f.count(`SELECT count(*) FROM ` + f.table("relay_request") + ` WHERE requested_by = session_user`); n != 1 {
				t.Errorf("%d requests are the role's", n)
			}
		})
	}
}

// steerings are all requests that want a position.
var steerings = map[string]func(context.Context, *Desk) (RequestID, error){
	"pause":             func(ctx context.Context, d *Desk) (RequestID, error) { return d.Pause(ctx) },
	"resume":            func(ctx context.Context, d *Desk) (RequestID, error) { return d.Resume(ctx) },
	"set the rate of":   func(ctx context.Context, d *Desk) (RequestID, error) { return d.SetRate(ctx, 1) },
	"lift the rate of":  func(ctx context.Context, d *Desk) (RequestID, error) { return d.Unlimited(ctx) },
	"set the types of ": func(ctx context.Context, d *Desk) (RequestID, error) { return d.SetTypes(ctx, "order.*") },
	"set the types of":  func(ctx context.Context, d *Desk) (RequestID, error) { return d.AllTypes(ctx) },
	"rewind":            func(ctx context.Context, d *Desk) (RequestID, error) { return d.RewindTo(ctx, 1) },
	"let":               func(ctx context.Context, d *Desk) (RequestID, error) { return d.SkipTo(ctx, 1) },
}

func TestSteeringOfWhatDoesNotRunIsRefused(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	ctx := t.Context()
	refused := func(is error, parts ...string) {
		t.Helper()
		for what, ask := range steerings {
			id, err := ask(ctx, f.desk())
			if id != 0 || !errors.Is(err, is) {
				t.Errorf("%s: request %d, %v; want %v", what, id, err, is)
				continue
			}
			for _, part := range append(parts, strings.TrimSpace(what)+` "test"`) {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: %q is not in %v", what, part, err)
				}
			}
		}
	}
	refused(ErrUnknownRelay, "none has run on schema", f.schema)
	f.known("kafka", "relay")
	f.known("stock.ledger", "handler")
	refused(ErrUnknownRelay, "kafka, stock.ledger")
	for i := range 30 {
		f.known(fmt.Sprintf("r%02d", i), "relay")
	}
	refused(ErrUnknownRelay, "kafka, r00, r01", "r18 and others")

	f.known("test", "relay")
	f.exec(`UPDATE ` + f.table("relay") + ` SET lost_at = '2026-03-01 12:00+00' WHERE relay = 'test'`)
	refused(ErrPositionLost, "2026-03-01T12:00:00Z", "Drop it")
	if n := f.count(`SELECT count(*) FROM ` + f.table("relay_request")); n != 0 {
		t.Errorf("%d requests were noted", n)
	}
}

func TestSteeringThatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.known("test", "relay")
	f.known("stock.ledger", "handler")
	ctx, d := t.Context(), f.desk()
	handler, err := NewDesk(f.as(testkit.Admin), "stock.ledger", DeskConfig{Schema: f.schema})
	if err != nil {
		t.Fatal(err)
	}
	rate := func(r float64) error { _, err := d.SetRate(ctx, r); return err }
	types := func(d *Desk, p ...string) error { _, err := d.SetTypes(ctx, p...); return err }
	for name, c := range map[string]struct {
		err  error
		says string
	}{
		"zero":            {rate(0), `set the rate of "test": invalid request: 0 events a second is no rate: use Pause to stop it`},
		"negative":        {rate(-1), "-1 events a second is no rate: use Pause"},
		"not a number":    {rate(math.NaN()), "NaN events a second is no rate: use Pause"},
		"next to nothing": {rate(1e-9), "less than 0.001: use Pause"},
		"infinite":        {rate(math.Inf(1)), "use Unlimited"},
		"minus infinite":  {rate(math.Inf(-1)), "use Pause"},
		"too fast":        {rate(1e10), "use Unlimited"},
		"no types":        {types(d), `set the types of "test": invalid request: no pattern was given: use AllTypes to let everything through, Pause`},
		"wrong types":     {types(d, "order.*", "Order", "*.placed"), `"Order"`},
		"all wrong":       {types(d, "Order", "*.placed"), `"*.placed" has a star`},
		"too many types":  {types(d, make([]string, 1001)...), "1001 patterns are more than 1000"},
	} {
		if !errors.Is(c.err, ErrInvalidRequest) || !strings.Contains(fmt.Sprint(c.err), c.says) {
			t.Errorf("%s: %v, want %q", name, c.err, c.says)
		}
	}
	if _, err := handler.SetRate(ctx, 5); err != nil {
		t.Errorf("a handler's rate: %v", err)
	}
	if got := f.asked("test") + f.asked("stock.ledger"); got != "rate 5" {
		t.Errorf("asked for %s", got)
	}
}
