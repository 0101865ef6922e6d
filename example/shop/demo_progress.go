package main

import (
	"context"
	"fmt"
	"time"

	"github.com/postbus/postbus/outbox"
)

// published counts the events in their topics, repeats included.
func (d *demonstration) published(ctx context.Context) (int64, error) {
	return d.broker.published(ctx, d.eventTopics())
}

// allHandled: no committed event waits for a handler.
func (d *demonstration) allHandled(ctx context.Context) (bool, error) {
	var committed, handled int
	err := d.books.QueryRow(ctx, `SELECT (`+countCommitted+`), (`+countHandled+`)`).Scan(&committed, &handled)
	return handled >= committed, err
}

// reported: the report's position is at the end of the log, and no event is put aside.
func (d *demonstration) reported(ctx context.Context) (bool, error) {
	stats, err := outbox.ReadStats(ctx, d.books, d.name)
	if err != nil {
		return false, err
	}
	for _, s := range stats.Relays {
		if s.Name == reportName {
			return s.OldestUnpublishedID == 0 && !s.Position.InRound && s.Parked.Rows() == 0, nil
		}
	}
	return false, nil
}

// counted is how many events the report has counted.
func (d *demonstration) counted(ctx context.Context) (n int64, err error) {
	err = d.books.QueryRow(ctx, `SELECT coalesce(sum(placed + paid + cancelled), 0)::bigint FROM sales`).Scan(&n)
	return n, err
}

// drained: every message of every topic was delivered and acked.
func (d *demonstration) drained(ctx context.Context) (bool, error) {
	return d.broker.drained(ctx, d.topics())
}

// report shows how far everything is, and tells the clerks, until ctx ends.
func (d *demonstration) report(ctx context.Context) error {
	look := time.NewTicker(liveInterval)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
		var committed, handled int
		err := d.books.QueryRow(ctx, `SELECT (`+countCommitted+`), (SELECT count(*) FROM ledger_entry)`).Scan(&committed, &handled)
		if err == nil {
			var published int64
			if published, err = d.published(ctx); err == nil {
				d.clerks.behind.Store(published - int64(handled))
				d.show.progress(fmt.Sprintf("committed %-5d published %-5d handled %-5d retried %-4d rolled back %d",
					committed, published, handled, d.shop.router.Stats().Retried, d.clerks.rolledBack.Load()))
			}
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}
