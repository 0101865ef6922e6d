package compare

import (
	"context"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

var durable = harness.Comparison{
	Name:  "durable",
	Shows: "a durable handler with one UPDATE of its own per event: each event in a transaction of its own, and 100 in one",
	Needs: []harness.Server{harness.Postgres},
	Run:   runDurable,
}

// durableBatch is how many events share a transaction in the batched mode.
const durableBatch = 100

func runDurable(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	rows := harness.Pick(e, 5_000, 600)
	batched := 10 * rows
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	if err := workload.Fill(ctx, e, batched); err != nil {
		return nil, err
	}
	_, err := e.Pool.Exec(ctx, `CREATE TABLE `+e.Table("ledger")+` (key text PRIMARY KEY, events bigint NOT NULL) WITH (fillfactor = 50);
		INSERT INTO `+e.Table("ledger")+` SELECT DISTINCT partition_key, 0 FROM `+e.Table("outbox")+`;
		CREATE TABLE `+e.Table("links")+` (LIKE `+e.Table("relay_link")+` INCLUDING ALL)`)
	if err != nil {
		return nil, err
	}
	update := `UPDATE ` + e.Table("ledger") + ` SET events = events + 1 WHERE key = $1`
	// Whatever a turn leaves behind must not be the next one's burden.
	tidy := func(ctx context.Context) error {
		if _, err := e.Pool.Exec(ctx, "TRUNCATE "+e.Table("links")); err != nil {
			return err
		}
		return workload.Settle(ctx, e, "ledger")
	}
	handled := func(name string, rows, batch int) harness.Runner {
		return harness.Runner{Name: name, Run: func(ctx context.Context, _ int) (float64, error) {
			if err := tidy(ctx); err != nil {
				return 0, err
			}
			sink := workload.NewSink(rows)
			d, err := outbox.NewDurable(e.Pool, func(ctx context.Context, tx *outbox.Tx, m *outbox.Message) error {
				if sink.Count() >= rows {
					return nil // the last commit is on its way
				}
				_, err := tx.Exec(ctx, update, m.Key)
				sink.Arrive(1)
				return err
			}, outbox.DurableConfig{Name: workload.FreshName(), Schema: e.Schema, Batch: batch, Logger: workload.Quiet})
			if err != nil {
				return 0, err
			}
			return workload.Clock(ctx, sink, 0, d.Run)
		}}
	}
	o, err := harness.Contest{
		Rounds: rounds, Rows: rows, SlowRows: rows,
		Ours: handled("ours", rows, 1),
		Limit: harness.Runner{Name: "loop", Run: func(ctx context.Context, rows int) (float64, error) {
			if err := tidy(ctx); err != nil {
				return 0, err
			}
			return limit.PerTx(ctx, e.Pool, e.Table("outbox"), e.Table("links"), update, rows)
		}},
		Peers: []harness.Runner{handled("batched", batched, durableBatch)},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	spread := harness.SpreadOf(o.Ratios("batched"))
	times := 1 / o.Ratio("batched")
	return &harness.Report{
		Line: o.Line("durable").Figure("times_batched", times),
		Bars: []harness.Bar{
			o.Bar(harness.Limit, 0.85),
			{Figure: "times_batched", Value: times, Spread: harness.Spread{Min: 1 / spread.Max, Max: 1 / spread.Min}, Least: 3},
		},
		Notes: []string{
			"ours: one transaction per event. limit: a hand-written loop with the same statements in the same round trips. batched: ours with 100 events a transaction; times_batched: in units of ours.",
		},
	}, nil
}
