package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postbus/postbus/example/shop/internal/order"
	"github.com/postbus/postbus/example/shop/internal/stock"
)

const (
	clerkCount    = 10
	customerCount = 40
	pace          = 110 * time.Millisecond // between two transactions of a clerk, on average
	mostBehind    = 150                    // events that wait at the broker: on a slow machine the clerks pause
)

var catalogue = []string{"teapot", "lamp", "chair", "notebook", "umbrella", "globe", "clock", "kettle"}

// soldOut is an article that nobody can have.
const soldOut = "first-edition"

// clerks place, pay and cancel orders, all at once, for customers they share:
// they meet at the customers' rows. Every fifth transaction of each is one that
// the shop refuses after it has published an event.
type clerks struct {
	shop       *Shop
	committed  atomic.Int64 // transactions, for the display
	rolledBack atomic.Int64
	behind     atomic.Int64 // events that wait at the broker, as last seen
}

// work returns when stop is closed and all transactions have ended, or with the
// first error that is not a refusal.
func (c *clerks) work(ctx context.Context, stop <-chan struct{}) error {
	all, ctx := errgroup.WithContext(ctx)
	for range clerkCount {
		all.Go(func() error { return (&clerk{clerks: c}).work(ctx, stop) })
	}
	return all.Wait()
}

type clerk struct {
	*clerks
	open []order.Order // that this clerk has placed
	paid []order.Order // the last few
}

func (c *clerk) work(ctx context.Context, stop <-chan struct{}) error {
	for n := 0; ; {
		pause := time.NewTimer(rand.N(2 * pace))
		select {
		case <-pause.C:
		case <-stop:
			pause.Stop()
			return nil
		case <-ctx.Done():
			pause.Stop()
			return nil
		}
		if c.behind.Load() > mostBehind {
			continue
		}
		var err error
		if n++; n%5 == 0 {
			err = c.beRefused(ctx)
		} else {
			err = c.succeed(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("a clerk's transaction: %w", err)
		}
	}
}

func (c *clerk) succeed(ctx context.Context) error {
	err := c.one(ctx)
	if err == nil {
		c.committed.Add(1)
	}
	return err
}

func (c *clerk) one(ctx context.Context) error {
	kind := rand.IntN(100)
	if len(c.open) == 0 || kind < 50 {
		o, err := c.shop.Place(ctx, someOrder(catalogue[rand.IntN(len(catalogue))]))
		if err == nil {
			c.open = append(c.open, o)
		}
		return err
	}
	i := rand.IntN(len(c.open))
	o := c.open[i]
	c.open[i] = c.open[len(c.open)-1]
	c.open = c.open[:len(c.open)-1]
	if kind < 60 {
		return c.shop.Cancel(ctx, o)
	}
	c.paid = append(c.paid[max(0, len(c.paid)-9):], o)
	return c.shop.Pay(ctx, o)
}

// beRefused does what must be rolled back: order what is sold out, or pay twice.
// Either publishes an event before an in-tx handler refuses.
func (c *clerk) beRefused(ctx context.Context) error {
	var err, want error
	if len(c.paid) > 0 && rand.IntN(2) == 0 {
		want = order.ErrNotOpen
		err = c.shop.Pay(ctx, c.paid[rand.IntN(len(c.paid))])
	} else {
		want = stock.ErrSoldOut
		_, err = c.shop.Place(ctx, someOrder(soldOut))
	}
	switch {
	case errors.Is(err, want):
		c.rolledBack.Add(1)
		return nil
	case err == nil:
		return fmt.Errorf("it was accepted, and should have been refused because of %q", want)
	}
	return err
}

func someOrder(sku string) order.Order {
	return order.Order{
		CustomerID: fmt.Sprintf("customer-%02d", 1+rand.IntN(customerCount)),
		SKU:        sku,
		Quantity:   1 + rand.IntN(3),
		Cents:      100 + rand.Int64N(9_900),
	}
}
