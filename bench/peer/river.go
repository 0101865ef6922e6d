package peer

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
)

// orderJob is our event as a job of River's.
type orderJob struct{ workload.Order }

func (orderJob) Kind() string { return "order_placed" }

// River is a client of River's in the schema of the bench.
type River struct {
	e      *harness.Env
	client *river.Client[pgx.Tx]
}

// NewRiver migrates the schema, and makes a client that only inserts.
func NewRiver(ctx context.Context, e *harness.Env, pool *pgxpool.Pool) (*River, error) {
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Schema: e.Schema, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, fmt.Errorf("create River's tables: %w", err)
	}
	client, err := river.NewClient(driver, &river.Config{Schema: e.Schema, Logger: slog.New(slog.DiscardHandler)})
	return &River{e: e, client: client}, err
}

// NewWorkingRiver makes a client that also works jobs, and calls done after each.
func NewWorkingRiver(ctx context.Context, e *harness.Env, pool *pgxpool.Pool, done func()) (*River, error) {
	if _, err := NewRiver(ctx, e, pool); err != nil { // creates the tables
		return nil, err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(context.Context, *river.Job[orderJob]) error { done(); return nil }))
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema: e.Schema, Workers: workers, Logger: slog.New(slog.DiscardHandler),
		Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 100}},
	})
	if err != nil {
		return nil, err
	}
	return &River{e: e, client: client}, client.Start(ctx)
}

// Stop ends the work of a client of NewWorkingRiver.
func (r *River) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return r.client.StopAndCancel(ctx)
}

// Empty truncates the table of jobs.
func (r *River) Empty(ctx context.Context) error {
	_, err := r.e.Pool.Exec(ctx, "TRUNCATE "+r.e.Table("river_job"))
	return err
}

// InsertMany inserts jobs in a transaction of their own, by River's fast path (COPY).
func (r *River) InsertMany(ctx context.Context, orders []workload.Order) error {
	params := make([]river.InsertManyParams, len(orders))
	for i := range orders {
		params[i].Args = orderJob{orders[i]}
	}
	_, err := r.client.InsertManyFast(ctx, params)
	return err
}

// Insert inserts one job in the caller's transaction.
func (r *River) Insert(ctx context.Context, tx pgx.Tx, o workload.Order) error {
	_, err := r.client.InsertTx(ctx, tx, orderJob{o}, nil)
	return err
}
