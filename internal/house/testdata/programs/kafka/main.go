// A program with a relay to Kafka and handlers behind it, and with no other broker.
package main

import (
	"context"
	"log"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/broker/kafka"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/outbox"
)

type orderPlaced struct {
	OrderID string `json:"order_id"`
}

func (orderPlaced) EventType() string     { return "order.placed" }
func (orderPlaced) SchemaVersion() int    { return 1 }
func (e orderPlaced) AggregateID() string { return e.OrderID }

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	cluster := kafka.Cluster{Brokers: strings.Split(os.Getenv("KAFKA_BROKERS"), ",")}
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Cluster: cluster})
	if err != nil {
		return err
	}
	defer publisher.Close()
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{Cluster: cluster, Group: "shop"})
	if err != nil {
		return err
	}
	defer subscriber.Close()
	relay, err := outbox.NewRelay(pool, publisher, outbox.RelayConfig{Name: "kafka"})
	if err != nil {
		return err
	}
	router, err := handlers.NewRouter(subscriber, handlers.Config{Pool: pool, Poison: handlers.PoisonConfig{Publisher: publisher}})
	if err != nil {
		return err
	}
	handlers.HandleTx(router, "orders", func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { return nil })
	go relay.Run(ctx)
	return router.Run(ctx)
}
