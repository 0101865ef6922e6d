package compare

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

var appendTx = harness.Comparison{
	Name:  "append.tx",
	Shows: "64 clients at once, each commit one business row and one event",
	Needs: []harness.Server{harness.Postgres},
	Run:   runAppendTx,
}

// clients is how many transactions of append.tx are open at once.
const clients = 64

func runAppendTx(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema})
	if err != nil {
		return nil, err
	}
	pool, err := e.NewPool(ctx, clients)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	river, err := peer.NewRiver(ctx, e, pool)
	if err != nil {
		return nil, err
	}
	watermill, err := peer.NewWatermillSQL(ctx, e)
	if err != nil {
		return nil, err
	}
	_, err = e.Pool.Exec(ctx, "CREATE TABLE "+e.Table("plain")+" "+limit.PlainTable+
		"; CREATE TABLE "+e.Table("business")+" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_id text NOT NULL, total_cents bigint NOT NULL)")
	if err != nil {
		return nil, err
	}

	wal := map[string][]float64{}
	commits := func(name, table string, publish func(ctx context.Context, tx pgx.Tx, o workload.Order) error) harness.Runner {
		return harness.Runner{Name: name, Run: func(ctx context.Context, rows int) (float64, error) {
			if _, err := e.Pool.Exec(ctx, "TRUNCATE "+e.Table("business")+", "+e.Table(table)); err != nil {
				return 0, err
			}
			before, err := walPosition(ctx, e)
			if err != nil {
				return 0, err
			}
			rate, err := workload.Clients(ctx, clients, rows, func(ctx context.Context, i int) error {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					o := workload.OrderOf(i)
					if _, err := tx.Exec(ctx, "INSERT INTO "+e.Table("business")+" (order_id, total_cents) VALUES ($1, $2)", o.OrderID, o.TotalCents); err != nil {
						return err
					}
					return publish(ctx, tx, o)
				})
			})
			if err != nil {
				return 0, err
			}
			after, err := walPosition(ctx, e)
			wal[name] = append(wal[name], (after-before)/float64(rows))
			return rate, err
		}}
	}
	o, err := harness.Contest{
		Rounds: rounds, Rows: harness.Pick(e, 12_000, 2_000), SlowRows: harness.Pick(e, 12_000, 2_000),
		Ours: commits("ours", "outbox", func(ctx context.Context, tx pgx.Tx, o workload.Order) error {
			event, err := events.New(ctx, o)
			if err != nil {
				return err
			}
			return log.Append(ctx, tx, event)
		}),
		Limit: commits("plain", "plain", func(ctx context.Context, tx pgx.Tx, o workload.Order) error {
			return limit.InsertPlain(ctx, tx, e.Table("plain"), o)
		}),
		Peers: []harness.Runner{
			commits("river", "river_job", river.Insert),
			commits("watermill_sql", "watermill_orders", watermill.Publish),
		},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	line := o.Line("append.tx")
	for _, name := range []string{"ours", "plain", "river", "watermill_sql"} {
		line.Figure("wal_bytes_"+name, harness.Median(wal[name]))
	}
	return &harness.Report{
		Line: line,
		Bars: []harness.Bar{o.Bar(harness.Limit, 0.9), o.Bar("river", 1), o.Bar("watermill_sql", 1)},
		Notes: []string{
			"limit: the same transaction with a bare INSERT of the same document into a table with a primary key and nothing else. wal_bytes: written by the whole server a commit, the business row included.",
		},
	}, nil
}

// walPosition is how many bytes of WAL the server has written so far.
func walPosition(ctx context.Context, e *harness.Env) (float64, error) {
	var bytes float64
	if err := e.Pool.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8").Scan(&bytes); err != nil {
		return 0, fmt.Errorf("ask for the position of the WAL: %w", err)
	}
	return bytes, nil
}
