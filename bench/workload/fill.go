package workload

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// fillBatch is how many events one transaction of Fill appends.
const fillBatch = 5000

// Fill appends n events to the log of e's schema, in many transactions, and leaves the
// table as VACUUM leaves it: whoever reads it first pays for no hint bits.
func Fill(ctx context.Context, e *harness.Env, n int) error {
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema})
	if err != nil {
		return err
	}
	e.Progress.Step("filling the log with %d events", n)
	// One goroutine encodes ahead while the other's rows are written.
	batches := make(chan []events.DomainEvent, 1)
	g, filling := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(batches)
		for at := 0; at < n; at += fillBatch {
			evs := make([]events.DomainEvent, 0, fillBatch)
			for i := at; i < min(at+fillBatch, n); i++ {
				evs = append(evs, EventOf(i))
			}
			select {
			case batches <- evs:
			case <-filling.Done():
				return filling.Err()
			}
		}
		return nil
	})
	g.Go(func() error {
		done := 0
		for evs := range batches {
			err := pgx.BeginFunc(filling, e.Pool, func(tx pgx.Tx) error { return log.Append(filling, tx, evs...) })
			if err != nil {
				return err
			}
			done += len(evs)
			e.Progress.Step("filling the log: %d of %d events", done, n)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("fill the log: %w", err)
	}
	return Settle(ctx, e, "outbox")
}

// Settle vacuums and analyzes a table that was just filled, so that every program
// finds its rows in the same state.
func Settle(ctx context.Context, e *harness.Env, table string) error {
	if _, err := e.Pool.Exec(ctx, "VACUUM (ANALYZE) "+e.Table(table)); err != nil {
		return fmt.Errorf("vacuum %s: %w", table, err)
	}
	return nil
}
