// Package peer holds the other programs that do the same work: each in a file of its
// own, set up as its own documentation does, and told what it needs to be at its best
// where that documentation says so.
package peer

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
)

// skipLocked is the outbox that people write by hand: a table of events, and workers
// that take the oldest ones with FOR UPDATE SKIP LOCKED, publish them, and mark or
// delete them in the same transaction. Several workers can share the table, at the price
// of the order.
type skipLocked struct {
	e       *harness.Env
	table   string
	create  string // the table and its index
	take    string // up to $1 events: their ids, topics, keys and payloads
	mark    string // what becomes of the events $1, once they are published; empty: take has done it
	workers int
	batch   int
}

func (s skipLocked) run(ctx context.Context, rows int) (float64, error) {
	if err := s.fill(ctx, rows); err != nil {
		return 0, fmt.Errorf("fill %s: %w", s.table, err)
	}
	sink := workload.NewSink(rows)
	return workload.Clock(ctx, sink, 0, func(ctx context.Context) error { return s.drain(ctx, sink) })
}

func (s skipLocked) fill(ctx context.Context, rows int) error {
	if _, err := s.e.Pool.Exec(ctx, "DROP TABLE IF EXISTS "+s.e.Table(s.table)+"; "+s.create); err != nil {
		return err
	}
	i := 0
	_, err := s.e.Pool.CopyFrom(ctx, pgx.Identifier{s.e.Schema, s.table}, []string{"topic", "partition_key", "payload"},
		pgx.CopyFromFunc(func() ([]any, error) {
			if i == rows {
				return nil, nil
			}
			i++
			return []any{"order", workload.OrderOf(i).OrderID, workload.Document(i)}, nil
		}))
	if err != nil {
		return err
	}
	return workload.Settle(ctx, s.e, s.table)
}

func (s skipLocked) drain(ctx context.Context, sink *workload.Sink) error {
	g, ctx := errgroup.WithContext(ctx)
	for range s.workers {
		g.Go(func() error {
			for ctx.Err() == nil {
				n, err := s.once(ctx, sink)
				if ctx.Err() != nil {
					break
				}
				if err != nil {
					return err
				}
				if n == 0 {
					select {
					case <-time.After(10 * time.Millisecond):
					case <-ctx.Done():
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// once takes one batch, and publishes it before the transaction that took it commits.
func (s skipLocked) once(ctx context.Context, sink *workload.Sink) (n int, err error) {
	var ids []int64
	err = pgx.BeginFunc(ctx, s.e.Pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, s.take, s.batch)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id int64
			var topic, key string
			var payload []byte
			if err := rows.Scan(&id, &topic, &key, &payload); err != nil {
				return err
			}
			ids = append(ids, id)
		}
		if rows.Err() != nil || s.mark == "" || len(ids) == 0 {
			return rows.Err()
		}
		_, err = tx.Exec(ctx, s.mark, ids)
		return err
	})
	if err == nil && len(ids) > 0 {
		sink.Arrive(len(ids))
	}
	return len(ids), err
}
