package main

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/handlers"
)

func (d *demonstration) open(ctx context.Context) error {
	d.step(1, "The shop is open: 10 clerks place, pay and cancel the orders of 40 customers; every fifth transaction is refused and rolled back.",
		"An event exists if and only if its transaction commits, so that nobody hears of an order that is not there.")
	first, err := d.startRelay("relay-1")
	if err != nil {
		return err
	}
	if err := d.until(ctx, "the first relay has published something", func(ctx context.Context) (bool, error) {
		n, err := d.published(ctx)
		return n > 0, err
	}); err != nil {
		return err
	}
	second, err := d.startRelay("relay-2")
	if err != nil {
		return err
	}
	d.note("relay-1 (pid %d) publishes; relay-2 (pid %d) stands by", first.pid(), second.pid())
	if err := d.startReports(ctx); err != nil {
		return err
	}
	return d.watchFor(ctx, 4*time.Second)
}

func (d *demonstration) poison(ctx context.Context) error {
	d.step(2, "The mail server refuses every 20th letter once, and now there is one order whose label cannot be made.",
		"What may pass is tried again in place; what cannot goes to the poison queue, whole, and holds up nobody else.")
	d.labels.spoil()
	var event uuid.UUID
	if err := d.until(ctx, "an event is in the poison queue", func(ctx context.Context) (bool, error) {
		return d.find(ctx, &event, `SELECT event_id FROM ledger_delivery WHERE outcome = 'poisoned'`)
	}); err != nil {
		return err
	}
	d.note("stock.ship has given up event %s, of order %d; all others go on", event, d.labels.spoiled())
	return d.watchFor(ctx, 2*time.Second)
}

func (d *demonstration) killRelay(ctx context.Context) error {
	d.step(3, "The relay is a process of its own, and dies by kill -9 in the middle of its work.",
		"Its position stands in Postgres and its lease runs out in 3 s: the one that stands by goes on from there, loses nothing, and keeps the order.")
	d.relays[0].kill()
	killed := time.Now()
	// What it had sent may still reach the broker; then there is silence.
	if err := d.watchFor(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	silent, err := d.published(ctx)
	if err != nil {
		return err
	}
	d.note("relay-1 is dead; orders are taken as before, and wait in the outbox")
	if err := d.until(ctx, "the second relay has taken over", func(ctx context.Context) (bool, error) {
		n, err := d.published(ctx)
		return n > silent, err
	}); err != nil {
		return err
	}
	d.note("relay-2 publishes, %.1f s after the kill", time.Since(killed).Seconds())
	return d.watchFor(ctx, 1500*time.Millisecond)
}

func (d *demonstration) duplicate(ctx context.Context) error {
	d.step(5, "An event that was handled long ago is put into its topic once more, by hand.",
		"Brokers and networks repeat themselves; the inbox is in one transaction with the effects, and they happen once.")
	event, err := d.broker.again(ctx, d.eventTopics()[0])
	if err != nil {
		return d.cannot(ctx, "repeat an event", err)
	}
	if err := d.until(ctx, "the duplicate is recognized", func(ctx context.Context) (found bool, err error) {
		err = d.books.QueryRow(ctx, `SELECT EXISTS (SELECT FROM ledger_delivery WHERE event_id = $1::uuid AND outcome = 'duplicate')`, event).Scan(&found)
		return found, err
	}); err != nil {
		return err
	}
	d.note("event %s came again, and no handler was called", event)
	return d.watchFor(ctx, 1500*time.Millisecond)
}

func (d *demonstration) replay(ctx context.Context) error {
	d.step(6, "The label printer is mended, and the poison queue is replayed.",
		"A bug costs a delay and no data: the event goes back to the one handler that had given it up.")
	d.labels.fix()
	var report handlers.ReplayReport
	// A pass ends when the queue has nothing to offer, and may do so too early where
	// a consumer takes its time to get its share.
	if err := d.until(ctx, "the poison queue is replayed", func(ctx context.Context) (ok bool, err error) {
		report, err = d.shop.replayer.Replay(ctx, handlers.DefaultPoisonTopic(d.eventTopics()[0]))
		return report.Replayed > 0, err
	}); err != nil {
		return err
	}
	var event uuid.UUID
	if err := d.until(ctx, "the replayed event is handled", func(ctx context.Context) (bool, error) {
		return d.find(ctx, &event, `SELECT event_id FROM ledger_delivery WHERE replayed AND outcome = 'handled'`)
	}); err != nil {
		return err
	}
	d.note("%d event replayed: %s is handled, and its parcel on the way", report.Replayed, event)
	return d.watchFor(ctx, 1500*time.Millisecond)
}

// find reads one value, if it is there yet.
func (d *demonstration) find(ctx context.Context, value any, sql string) (bool, error) {
	err := d.books.QueryRow(ctx, sql).Scan(value)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}
