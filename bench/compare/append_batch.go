package compare

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

var appendBatch = harness.Comparison{
	Name:  "append.batch",
	Shows: "500 events appended a call, each call a transaction",
	Needs: []harness.Server{harness.Postgres},
	Run:   runAppendBatch,
}

// perCall is how many events one call appends.
const perCall = 500

func runAppendBatch(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema})
	if err != nil {
		return nil, err
	}
	eventBus, err := bus.New(log, bus.Config{})
	if err != nil {
		return nil, err
	}
	// The limit's table: the same columns, defaults and indexes.
	if _, err := e.Pool.Exec(ctx, "CREATE TABLE "+e.Table("copied")+" (LIKE "+e.Table("outbox")+" INCLUDING ALL)"); err != nil {
		return nil, err
	}
	river, err := peer.NewRiver(ctx, e, e.Pool)
	if err != nil {
		return nil, err
	}
	watermill, err := peer.NewWatermillSQL(ctx, e)
	if err != nil {
		return nil, err
	}
	copier := limit.NewCopier(e.Table("copied"))
	empty := func(table string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := e.Pool.Exec(ctx, "TRUNCATE "+e.Table(table))
			return err
		}
	}
	calls := func(name string, empty func(context.Context) error, call func(context.Context, []workload.Order) error) harness.Runner {
		return harness.Runner{Name: name, Run: func(ctx context.Context, rows int) (float64, error) {
			if err := empty(ctx); err != nil {
				return 0, err
			}
			return workload.Calls(ctx, rows, perCall, call)
		}}
	}
	o, err := harness.Contest{
		Rounds: rounds, Rows: harness.Pick(e, 100_000, 15_000), SlowRows: harness.Pick(e, 50_000, 5_000),
		Ours: calls("ours", empty("outbox"), func(ctx context.Context, orders []workload.Order) error {
			return pgx.BeginFunc(ctx, e.Pool, func(tx pgx.Tx) error {
				evs := make([]events.DomainEvent, len(orders))
				for i := range orders {
					var err error
					if evs[i], err = events.New(ctx, orders[i]); err != nil {
						return err
					}
				}
				return log.Append(ctx, tx, evs...)
			})
		}),
		Limit: calls("copy", empty("copied"), func(ctx context.Context, orders []workload.Order) error {
			return copier.Append(ctx, e.Pool, orders)
		}),
		Peers: []harness.Runner{
			calls("bus", empty("outbox"), func(ctx context.Context, orders []workload.Order) error {
				return bus.InTx(ctx, e.Pool, func(ctx context.Context, tx pgx.Tx) error {
					return bus.PublishAll(ctx, eventBus, tx, orders)
				})
			}),
			calls("river", river.Empty, river.InsertMany),
			calls("watermill_sql", watermill.Empty, watermill.PublishMany),
		},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	return &harness.Report{
		Line: o.Line("append.batch").Figure("cpu_us", o.CPU(harness.Ours)).Figure("cpu_us_limit", o.CPU(harness.Limit)),
		Bars: []harness.Bar{o.Bar(harness.Limit, 0.9), o.Bar("river", 1), o.Bar("watermill_sql", 1)},
		Notes: []string{
			"ours: events.New and Log.Append. limit: a hand-written binary COPY of the same documents, encoded on the way, into a table with the same indexes. bus: ours through bus.InTx and bus.PublishAll. cpu_us: of this process, an event; PostgreSQL runs beside it.",
		},
	}, nil
}
