package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/example/shop/internal/order"
	"github.com/postbus/postbus/example/shop/internal/sales"
	"github.com/postbus/postbus/outbox"
)

// reportName is that of the report's position in the log: it is for ever.
const reportName = "sales.report"

// newReport makes a bus whose one durable handler keeps the report: its Run reads the
// log, and needs no broker. Any number of processes may run one: they take turns.
func newReport(pool *pgxpool.Pool, cfg Config) (*bus.EventBus, error) {
	log, err := outbox.NewLog(outbox.LogConfig{Schema: cfg.Schema, Topic: cfg.topic})
	if err != nil {
		return nil, err
	}
	eventBus, err := bus.New(log, bus.Config{
		Pool: pool, DurableConnections: 3,
		Durable: outbox.DurableConfig{Lease: 2 * time.Second}, // after a crash the next one takes over within this
		Logger:  cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	// Three types of events change the same rows: one handler for all of them, so that
	// a customer's events come in their order.
	bus.SubscribeDurableTo(eventBus, reportName, bus.FromBeginning, "order.*", report(sales.Report{}))
	return eventBus, nil
}

// report counts an event in the transaction that also moves the position past it:
// each event counts once, whatever dies.
func report(r sales.Report) func(context.Context, pgx.Tx, events.DomainEvent) error {
	return func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error {
		switch e.EventType {
		case order.Placed{}.EventType():
			placed, err := events.Typed[order.Placed](e)
			if err != nil {
				return err
			}
			return r.Placed(ctx, tx, placed.Data.SKU, placed.Data.Cents)
		case order.Paid{}.EventType():
			paid, err := events.Typed[order.Paid](e)
			if err != nil {
				return err
			}
			return r.Paid(ctx, tx, paid.Data.SKU, paid.Data.Quantity)
		case order.Cancelled{}.EventType():
			cancelled, err := events.Typed[order.Cancelled](e)
			if err != nil {
				return err
			}
			return r.Cancelled(ctx, tx, cancelled.Data.SKU)
		}
		return nil // a new type, which the report says nothing of
	}
}
