package compare

import (
	"context"
	"fmt"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/google/uuid"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

var longTx = harness.Comparison{
	Name:  "longtx",
	Shows: "another session keeps a transaction with an xid open: what that does to the rate and to the latency",
	Needs: []harness.Server{harness.Postgres},
	Run:   runLongTx,
}

func runLongTx(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema})
	if err != nil {
		return nil, err
	}

	// A transaction that appends early, and stays open while a backlog passes.
	early, err := e.Pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer early.Rollback(context.WithoutCancel(ctx))
	lateEvent := workload.EventOf(0)
	if err := log.Append(ctx, early, lateEvent); err != nil {
		return nil, err
	}
	backlog := harness.Pick(e, 2_000_000, 60_000)
	if err := workload.Fill(ctx, e, backlog); err != nil {
		return nil, err
	}
	drain := func(ctx context.Context) (float64, error) {
		sink := workload.NewSink(backlog)
		return workload.Drain(ctx, e, sink.Batches(), sink, outbox.RelayConfig{}, 0)
	}
	var earlyRates []float64
	drains := harness.Pick(e, 3, 5)
	for i := range drains {
		e.Progress.Step("drain of %d events past an open append, %d of %d", backlog, i+1, drains)
		rate, err := drain(ctx)
		if err != nil {
			return nil, err
		}
		earlyRates = append(earlyRates, rate)
	}
	earlyP99, arrival, err := pastAnOpenAppend(ctx, e, log, backlog, func() error { return early.Commit(ctx) }, lateEvent.EventID)
	if err != nil {
		return nil, err
	}

	// With and without a transaction of a stranger, in turn. The early one has ended.
	backlog++
	o, err := harness.Contest{
		Rounds: rounds, Rows: backlog,
		Ours: harness.Runner{Name: "with", Run: func(ctx context.Context, _ int) (float64, error) {
			end, err := workload.OpenXid(ctx, e.Pool)
			if err != nil {
				return 0, err
			}
			defer end()
			return drain(ctx)
		}},
		Limit: harness.Runner{Name: "without", Run: func(ctx context.Context, _ int) (float64, error) { return drain(ctx) }},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	with, without, err := latenciesInTurn(ctx, e, log, harness.Pick(e, 10, 4), harness.Pick(e, 50, 25))
	if err != nil {
		return nil, err
	}
	stalled, free, err := peerBeside(ctx, e)
	if err != nil {
		return nil, err
	}

	p := func(ds []time.Duration, of float64) float64 { return harness.Milliseconds(harness.Percentile(ds, of)) }
	p99 := p(with, 0.99) / p(without, 0.99)
	earlyRatio := harness.Median(earlyRates) / o.Rate(harness.Limit)
	spread := harness.SpreadOf(earlyRates)
	return &harness.Report{
		Line: o.Line("longtx").
			Latency("", p(with, 0.5), p(with, 0.99)).Latency("limit_", p(without, 0.5), p(without, 0.99)).Figure("ratio_p99", p99).
			Figure("early", harness.Median(earlyRates)).Figure("ratio_early", earlyRatio).Figure("early_p99_ms", earlyP99).Figure("late_arrival_ms", arrival).
			Figure("watermill_sql", stalled).Figure("watermill_sql_without", free),
		Bars: []harness.Bar{
			o.Bar(harness.Limit, 0.9),
			{Figure: "ratio_p99", Value: p99, Most: 1.1},
			{Figure: "ratio_early", Value: earlyRatio, Spread: harness.Spread{Min: spread.Min / o.Rate(harness.Limit), Max: spread.Max / o.Rate(harness.Limit)}, Least: 0.9},
		},
		Notes: []string{
			"ours: drained while a transaction with an xid is open; limit: the same without. p50_ms and p99_ms: from a commit to the publisher.",
			fmt.Sprintf("early: drained while a transaction is open that appended an event before the whole backlog of %d; late_arrival_ms: from its commit until that event is published. Measured before the rounds, since it cannot take turns with them.", backlog),
			"watermill_sql: events a second that arrive while that transaction is open; watermill_sql_without: once it has ended.",
		},
	}, nil
}

// pastAnOpenAppend gives the p99 in milliseconds of new events while an old append is
// open, and how long after its commit its own event takes.
func pastAnOpenAppend(ctx context.Context, e *harness.Env, log *outbox.Log, backlog int, commit func() error, id uuid.UUID) (p99, arrival float64, err error) {
	e.Progress.Step("latency past an open append")
	arrivals := workload.NewArrivals()
	relay, err := workload.StartRelay(ctx, e, e.Pool, arrivals, outbox.RelayConfig{})
	if err != nil {
		return 0, 0, err
	}
	defer relay.Stop()
	if err := arrivals.Wait(ctx, backlog); err != nil {
		return 0, 0, err
	}
	waits, err := arrivals.Latencies(ctx, e.Pool, log, harness.Pick(e, 500, 100), wakePause)
	if err != nil {
		return 0, 0, err
	}
	if err := commit(); err != nil {
		return 0, 0, err
	}
	committed := time.Now()
	log.Wake()
	at, err := arrivals.Of(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	return harness.Milliseconds(harness.Percentile(waits, 0.99)), harness.Milliseconds(max(0, at.Sub(committed))), nil
}

// latenciesInTurn measures with and without an open transaction, a block of commits each.
func latenciesInTurn(ctx context.Context, e *harness.Env, log *outbox.Log, blocks, commits int) (with, without []time.Duration, err error) {
	arrivals := workload.NewArrivals()
	relay, err := workload.StartRelay(ctx, e, e.Pool, arrivals, outbox.RelayConfig{StartAt: outbox.FromNow})
	if err != nil {
		return nil, nil, err
	}
	defer relay.Stop()
	block := func(open bool) ([]time.Duration, error) {
		if open {
			end, err := workload.OpenXid(ctx, e.Pool)
			if err != nil {
				return nil, err
			}
			defer end()
		}
		return arrivals.Latencies(ctx, e.Pool, log, commits, wakePause)
	}
	// The first ones find the relay at its start.
	if _, err := block(false); err != nil {
		return nil, nil, err
	}
	for i := range blocks {
		e.Progress.Step("latency, %d of %d", i+1, blocks)
		w, err := block(true)
		if err != nil {
			return nil, nil, err
		}
		wo, err := block(false)
		if err != nil {
			return nil, nil, err
		}
		with, without = append(with, w...), append(without, wo...)
	}
	return with, without, nil
}

// peerBeside has watermill-sql's forwarder forward while a transaction is open, and
// after it has ended: events a second of each.
func peerBeside(ctx context.Context, e *harness.Env) (stalled, free float64, err error) {
	e.Progress.Step("watermill-sql beside an open transaction")
	pool, err := e.NewPool(ctx, 1)
	if err != nil {
		return 0, 0, err
	}
	defer pool.Close()
	end, err := workload.OpenXid(ctx, pool)
	if err != nil {
		return 0, 0, err
	}
	defer end()
	rows := harness.Pick(e, 50_000, 5_000)
	if err := peer.FillForwarder(ctx, e, "longtx", rows); err != nil {
		return 0, 0, err
	}
	sink := workload.NewSink(rows)
	forwarding := workload.Start(ctx, func(ctx context.Context) error {
		return peer.RunForwarder(ctx, e, "longtx", wsql.DefaultPostgreSQLSchema{}, sink)
	})
	defer forwarding.Stop()
	wait := 3 * time.Second
	workload.Pause(ctx, wait)
	stalled = harness.PerSecond(sink.Count(), wait)
	end()
	ended := time.Now()
	before := sink.Count()
	select {
	case <-sink.Done():
	case <-time.After(time.Minute):
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
	return stalled, harness.PerSecond(sink.Count()-before, time.Since(ended)), nil
}
