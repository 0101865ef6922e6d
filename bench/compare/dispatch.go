package compare

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
)

var dispatch = harness.Comparison{
	Name:  "dispatch",
	Shows: "a typed event handed to a handler in this process, fresh id and time included",
	Needs: []harness.Server{harness.Postgres}, // not for itself: RESULTS.md names the server
	Run:   runDispatch,
}

// manyHandlers is how many handlers the second measurement has.
const manyHandlers = 10

func runDispatch(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	var perHandler []float64
	rows := harness.Pick(e, 2_000_000, 300_000)
	o, err := harness.Contest{
		Rounds: 2*rounds + 1, Rows: rows, SlowRows: harness.Pick(e, 50_000, 20_000),
		Ours: harness.Runner{Name: "ours", Run: func(_ context.Context, rows int) (float64, error) {
			one, err := dispatched(rows, 1)
			if err != nil {
				return 0, err
			}
			many, err := dispatched(rows/4, manyHandlers)
			perHandler = append(perHandler, (1e9/many-1e9/one)/(manyHandlers-1))
			return one, err
		}},
		Limit: harness.Runner{Name: "clock_and_id", Run: func(_ context.Context, rows int) (float64, error) {
			var loop limit.ClockAndID
			rate := workload.LoopOf(rows, loop.Run)
			if loop.Last.ID == uuid.Nil {
				return 0, errors.New("the loop has made no id")
			}
			return rate, nil
		}},
		Peers: []harness.Runner{peer.EventBus(), peer.CQRS()},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	local, order, err := localBus(1, new(int))
	if err != nil {
		return nil, err
	}
	allocations := workload.Allocations(100_000, func() { _ = bus.Dispatch(ctx, local, order) })
	times := 1 / o.Ratio(harness.Limit)
	spread := harness.SpreadOf(o.Ratios(harness.Limit))
	return &harness.Report{
		Line: o.Line("dispatch").Figure("ours_ns", 1e9/o.Rate(harness.Ours)).Figure("limit_ns", 1e9/o.Rate(harness.Limit)).
			Figure("times_limit", times).Figure("allocs", allocations).
			Figure("per_handler_ns", harness.Median(perHandler)).Text("spread_per_handler", harness.SpreadOf(perHandler).String()),
		Bars: []harness.Bar{
			{Figure: "times_limit", Value: times, Spread: harness.Spread{Min: 1 / spread.Max, Max: 1 / spread.Min}, Most: 1.5},
			{Figure: "allocs", Value: allocations, Most: 0.001},
			{Figure: "per_handler_ns", Value: harness.Median(perHandler), Spread: harness.SpreadOf(perHandler), Most: 10, Target: true},
		},
		Notes: []string{
			"limit: a loop that reads the clock and makes a UUIDv7 from block entropy, and calls nobody. Rates are medians over chunks of 4,000 calls. times_limit: ours in units of it. per_handler_ns: what each of 9 further handlers adds.",
			"eventbus hands over a value without id or time; cqrs encodes it, and returns when its handler has acked.",
		},
	}, nil
}

// dispatched gives the rate of Dispatch to that many handlers.
func dispatched(rows, handlers int) (float64, error) {
	calls := 0
	local, order, err := localBus(handlers, &calls)
	if err != nil {
		return 0, err
	}
	ctx := context.Background()
	rate := workload.Loop(rows, func() { _ = bus.Dispatch(ctx, local, order) })
	if calls != rows*handlers {
		return 0, fmt.Errorf("%d handlers were called %d times in %d dispatches", handlers, calls, rows)
	}
	return rate, nil
}

func localBus(handlers int, calls *int) (*bus.Local, workload.Order, error) {
	local, err := bus.NewLocal(bus.LocalConfig{})
	if err != nil {
		return nil, workload.Order{}, err
	}
	for range handlers {
		bus.Subscribe(local, func(context.Context, events.Event[workload.Order]) error { *calls++; return nil })
	}
	return local, workload.OrderOf(0), nil
}
