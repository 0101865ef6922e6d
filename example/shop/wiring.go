package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/example/shop/internal/mail"
	"github.com/postbus/postbus/example/shop/internal/order"
	"github.com/postbus/postbus/example/shop/internal/payment"
	"github.com/postbus/postbus/example/shop/internal/stock"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/outbox"
)

// This file is the one place where the shop meets Postbus: who publishes, who
// listens, and how. The domain packages import nothing of it.

// Config is what differs between two installations of the shop.
type Config struct {
	Schema   string                       // of Postbus' tables in Postgres
	Prefix   string                       // before the names of the broker's topics
	Mail     mail.Sender                  // takes the letters
	Labels   stock.Labeler                // makes the parcels' labels
	OnResult func(handlers.HandlerResult) // told of every delivery, for metrics; may be nil
	Logger   *slog.Logger
}

// topic is where an event type goes: one topic for all events of a domain, since
// order holds within one. The log and the router must agree on it.
func (c Config) topic(eventType string) string { return c.Prefix + outbox.DefaultTopic(eventType) }

// Shop is the wired monolith.
type Shop struct {
	pool     *pgxpool.Pool
	bus      *bus.EventBus
	router   *handlers.Router
	replayer *handlers.Replayer

	subscriber message.Subscriber
	publisher  message.Publisher // of poison and replays; events go through the outbox

	orders   *order.Orders
	payments *payment.Payments
	stock    *stock.Stock
	mail     *mail.Office
	ticker   *ticker
}

// newShop wires the shop. It connects to nothing and starts nothing.
func newShop(pool *pgxpool.Pool, broker broker, cfg Config) (*Shop, error) {
	log, err := outbox.NewLog(outbox.LogConfig{Schema: cfg.Schema, Topic: cfg.topic})
	if err != nil {
		return nil, err
	}
	eventBus, err := bus.New(log, bus.Config{Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	publisher, err := broker.Publisher()
	if err != nil {
		return nil, err
	}
	subscriber, err := broker.Subscriber(cfg.Logger)
	if err != nil {
		return nil, err
	}
	router, err := handlers.NewRouter(subscriber, handlers.Config{
		Pool: pool, Schema: cfg.Schema, Topic: cfg.topic,
		Retry:    handlers.RetryConfig{MaxAttempts: 8, Initial: 20 * time.Millisecond, MaxInterval: 2 * time.Second},
		Poison:   handlers.PoisonConfig{Publisher: publisher},
		OnResult: cfg.OnResult, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	replayer, err := handlers.NewReplayer(subscriber, publisher, handlers.ReplayConfig{Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	s := &Shop{
		pool: pool, bus: eventBus, router: router, replayer: replayer,
		subscriber: subscriber, publisher: publisher,
		orders:   order.New(bus.PublisherOf[order.Event](eventBus)),
		payments: payment.New(bus.PublisherOf[payment.Event](eventBus)),
		stock:    stock.New(cfg.Labels),
		mail:     mail.New(cfg.Mail),
		ticker:   &ticker{},
	}
	s.wireBus()
	s.wireRouter()
	return s, nil
}

// wireBus says who listens in this process.
func (s *Shop) wireBus() {
	// In the transaction: an order and its reservation happen both or not at all.
	// An error of the handler refuses the order.
	bus.SubscribeInTx(s.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[order.Placed]) error {
		return s.stock.Reserve(ctx, tx, e.Data.SKU, e.Data.Quantity)
	})
	bus.SubscribeInTx(s.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[order.Cancelled]) error {
		return s.stock.Release(ctx, tx, e.Data.SKU, e.Data.Quantity)
	})
	// A handler may publish: order.paid becomes part of the payment's transaction,
	// with payment.received as its cause.
	bus.SubscribeInTx(s.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[payment.Received]) error {
		return s.orders.Settle(ctx, tx, e.Data.CustomerID, e.Data.OrderID)
	})
	// After the commit, best effort: for what lives in this process' memory.
	bus.SubscribeAfterCommit(s.bus, func(_ context.Context, e events.Event[order.Placed]) error {
		s.ticker.sold(e.Data.Cents)
		return nil
	})
}

// wireRouter says who listens behind the broker. The names stand in the inbox
// and in the poison queue: they are for ever.
func (s *Shop) wireRouter() {
	// Letters cannot be taken back by a rollback: at least once, and not again once
	// it is known that they have gone.
	handlers.Handle(s.router, "mail.confirmation", func(ctx context.Context, e events.Event[order.Placed]) error {
		return s.mail.Confirm(ctx, e.Data.CustomerID, e.Data.OrderID)
	})
	handlers.Handle(s.router, "mail.receipt", func(ctx context.Context, e events.Event[payment.Received]) error {
		return s.mail.Receipt(ctx, e.Data.CustomerID, e.Data.OrderID, e.Data.Cents)
	})
	// Parcels are rows in our database: they take effect once, however often the
	// event is delivered.
	handlers.HandleTx(s.router, "stock.ship", func(ctx context.Context, tx pgx.Tx, e events.Event[order.Paid]) error {
		err := s.stock.Ship(ctx, tx, e.Data.OrderID, e.Data.SKU, e.Data.Quantity, e.EventID.String())
		if errors.Is(err, stock.ErrLabel) {
			return handlers.Permanent(err) // to the poison queue at once: only a person can help
		}
		return err
	})
}

// newRelay makes the relay that takes the shop's events to the broker. Any number of
// processes may run one: they take turns.
func newRelay(pool *pgxpool.Pool, publisher message.Publisher, cfg Config) (*outbox.Relay, error) {
	return outbox.NewRelay(pool, publisher, outbox.RelayConfig{
		Name: "shop", Schema: cfg.Schema, Logger: cfg.Logger,
		Lease: 3 * time.Second, // after a crash the next one takes over within this
	})
}
