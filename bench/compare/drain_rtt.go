package compare

import (
	"context"
	"time"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

var drainRTT = harness.Comparison{
	Name:  "drain.rtt",
	Shows: "a backlog drained to a publisher that takes 5 ms a call: how well calls overlap",
	Needs: []harness.Server{harness.Postgres},
	Run:   runDrainRTT,
}

const (
	roundTrip = 5 * time.Millisecond
	stockLane = 64 // RelayConfig.Lanes of a publisher without a batch call
)

func runDrainRTT(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	rows, ones := harness.Pick(e, 500_000, 100_000), harness.Pick(e, 30_000, 7_000)
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	if err := workload.Fill(ctx, e, rows); err != nil {
		return nil, err
	}

	// One message a call.
	o, err := harness.Contest{
		Rounds: rounds, Rows: ones,
		Ours: harness.Runner{Name: "ours", Run: func(ctx context.Context, rows int) (float64, error) {
			sink := workload.NewSink(rows)
			sink.Delay = roundTrip
			return workload.Drain(ctx, e, sink, sink, outbox.RelayConfig{Lanes: stockLane}, 0)
		}},
		Limit: harness.Runner{Name: "lanes", Run: func(ctx context.Context, rows int) (float64, error) {
			return limit.Lanes(ctx, stockLane, rows, func() { time.Sleep(roundTrip) })
		}},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	bound := stockLane / roundTrip.Seconds()

	// Batches, with both contracts.
	var batched, strict []float64
	for i := range 3 {
		for _, of := range []struct {
			rates  *[]float64
			strict bool
		}{{&batched, false}, {&strict, true}} {
			e.Progress.Step("batches, %d of 3, one event per key and call: %v", i+1, of.strict)
			sink := workload.NewSink(rows)
			sink.Delay, sink.Strict = roundTrip, of.strict
			rate, err := workload.Drain(ctx, e, sink.Batches(), sink, outbox.RelayConfig{}, 0)
			if err != nil {
				return nil, err
			}
			*of.rates = append(*of.rates, rate)
		}
	}
	return &harness.Report{
		Line: o.Line("drain.rtt").Figure("bound", bound).Figure("ratio_bound", o.Rate(harness.Ours)/bound).
			Figure("batch", harness.Median(batched)).Text("spread_batch", harness.SpreadOf(batched).String()).
			Figure("batch_strict", harness.Median(strict)).Text("spread_batch_strict", harness.SpreadOf(strict).String()),
		Bars: []harness.Bar{
			{Figure: "ratio_bound", Value: o.Rate(harness.Ours) / bound, Least: 0.8},
			{Figure: "batch, events a second", Value: harness.Median(batched), Spread: harness.SpreadOf(batched), Least: 100_000, Target: true},
		},
		Notes: []string{
			"ours: one message a call, 64 lanes. limit: 64 goroutines that do nothing but sleep 5 ms a message; bound: 64 / 5 ms.",
			"batch: calls of up to 1,000 events, 8 at a time, to a publisher whose keys stop at their first failure; batch_strict: to one whose keys do not, so that a call holds one event per key.",
		},
	}, nil
}
