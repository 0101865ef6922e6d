package compare

import (
	"context"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

var drainNull = harness.Comparison{
	Name:  "drain.null",
	Shows: "a backlog drained to a publisher that does nothing: how fast the relay itself is",
	Needs: []harness.Server{harness.Postgres},
	Run:   runDrainNull,
}

func runDrainNull(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	rows := harness.Pick(e, 500_000, 100_000)
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	if err := workload.Fill(ctx, e, rows); err != nil {
		return nil, err
	}
	o, err := harness.Contest{
		Rounds: rounds, Rows: rows, SlowRows: harness.Pick(e, 50_000, 15_000),
		Ours: harness.Runner{Name: "ours", Run: func(ctx context.Context, rows int) (float64, error) {
			sink := workload.NewSink(rows)
			return workload.Drain(ctx, e, sink.Batches(), sink, outbox.RelayConfig{}, 0)
		}},
		Limit: harness.Runner{Name: "stream", Run: func(ctx context.Context, rows int) (float64, error) {
			return limit.Stream(ctx, e.Pool, e.Table("outbox"), rows)
		}},
		Peers: []harness.Runner{{Name: "ordered", Run: func(ctx context.Context, _ int) (float64, error) {
			return limit.StreamOrdered(ctx, e.Pool, e.Table("outbox"), rows)
		}}, peer.Forwarder(e), peer.ForwarderTuned(e), peer.SkipLockedUpdate(e), peer.SkipLockedUpdateFast(e), peer.SkipLockedDelete(e)},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	level, err := drainLevel(ctx, e, rows, harness.Pick(e, 2_000_000, 200_000), harness.Pick(e, 100_000, 40_000))
	if err != nil {
		return nil, err
	}
	return &harness.Report{
		Line: o.Line("drain.null").Figure("level", harness.Median(level)).Text("spread_level", harness.SpreadOf(level).String()),
		Bars: []harness.Bar{
			o.Bar(harness.Limit, 0.6),
			o.Bar("forwarder", 15),
			o.Bar("skip_update", 5),
			{Figure: "level", Value: harness.Median(level), Spread: harness.SpreadOf(level), Least: 0.9},
		},
		Notes: []string{
			"limit: one streaming SELECT of the same rows; ordered: the same in the order of ids. forwarder: with its defaults, batches of 100; forwarder_1000: with batches of 1,000. skip_*: hand-written, batches of 1,000, one worker, which keeps the order; skip_update_fast: two workers, which do not, and one statement that takes and marks. level: rate of the last part of one long drain to that of its first.",
		},
	}, nil
}

// drainLevel makes the backlog longer and drains it thrice: the rate of the last part
// as a share of that of the first, counted from the first event's arrival on.
func drainLevel(ctx context.Context, e *harness.Env, have, rows, part int) ([]float64, error) {
	if err := workload.Fill(ctx, e, rows-have); err != nil {
		return nil, err
	}
	var shares []float64
	for i := range 3 {
		e.Progress.Step("drain of %d rows, %d of 3", rows, i+1)
		sink := workload.NewSink(rows)
		for _, n := range []int{1, part, rows - part, rows} {
			sink.Mark(n)
		}
		if _, err := workload.Drain(ctx, e, sink.Batches(), sink, outbox.RelayConfig{}, 0); err != nil {
			return nil, err
		}
		first := sink.Marked(part).Sub(sink.Marked(1))
		last := sink.Marked(rows).Sub(sink.Marked(rows - part))
		shares = append(shares, first.Seconds()/last.Seconds())
	}
	return shares, nil
}
