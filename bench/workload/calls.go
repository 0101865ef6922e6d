package workload

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postbus/postbus/bench/harness"
)

// Calls has call take rows orders, perCall at a time, one call after the other, and
// gives the rate of orders. The orders are made before the clock starts.
func Calls(ctx context.Context, rows, perCall int, call func(context.Context, []Order) error) (float64, error) {
	orders := make([]Order, rows)
	for i := range orders {
		orders[i] = OrderOf(i)
	}
	began := time.Now()
	for at := 0; at < rows; at += perCall {
		if err := call(ctx, orders[at:min(at+perCall, rows)]); err != nil {
			return 0, err
		}
	}
	return harness.PerSecond(rows, time.Since(began)), nil
}

// Clients has that many clients make rows calls in all, at once, and gives the rate.
func Clients(ctx context.Context, clients, rows int, call func(ctx context.Context, i int) error) (float64, error) {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for c := range clients {
		g.Go(func() error {
			for i := c; i < rows; i += clients {
				if err := call(ctx, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return harness.PerSecond(rows, time.Since(began)), nil
}
