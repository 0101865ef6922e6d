package peer

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
)

// Forwarder is Watermill's outbox: watermill-sql with its offset schema for PostgreSQL,
// and the forwarder component that takes messages from there to a publisher. All of it
// with the defaults: batches of 100.
func Forwarder(e *harness.Env) harness.Runner { return forwarderOf(e, "forwarder", 0) }

// ForwarderTuned is Forwarder with batches of 1,000, which its defaults do not offer
// because a crash then repeats more.
func ForwarderTuned(e *harness.Env) harness.Runner { return forwarderOf(e, "forwarder_1000", 1000) }

func forwarderOf(e *harness.Env, name string, batch int) harness.Runner {
	return harness.Runner{Name: name, Run: func(ctx context.Context, rows int) (float64, error) {
		if _, err := e.Pool.Exec(ctx, "DROP TABLE IF EXISTS "+e.Table("watermill_"+name)+", "+e.Table("watermill_offsets_"+name)); err != nil {
			return 0, err
		}
		schema := wsql.DefaultPostgreSQLSchema{SubscribeBatchSize: batch}
		if err := FillForwarder(ctx, e, name, rows); err != nil {
			return 0, err
		}
		sink := workload.NewSink(rows)
		return workload.Clock(ctx, sink, 0, func(ctx context.Context) error {
			return RunForwarder(ctx, e, name, schema, sink)
		})
	}}
}

// FillForwarder publishes rows messages to the forwarder's topic, 500 a call.
func FillForwarder(ctx context.Context, e *harness.Env, topic string, rows int) error {
	inner, err := wsql.NewPublisher(wsql.BeginnerFromPgx(e.Pool),
		wsql.PublisherConfig{SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, AutoInitializeSchema: true}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	publisher := forwarder.NewPublisher(inner, forwarder.PublisherConfig{ForwarderTopic: topic})
	for at := 0; at < rows; at += 500 {
		var msgs []*message.Message
		for i := at; i < min(at+500, rows); i++ {
			m := message.NewMessage(watermill.NewUUID(), workload.Document(i))
			m.Metadata.Set("partition_key", workload.OrderOf(i).OrderID)
			m.SetContext(ctx)
			msgs = append(msgs, m)
		}
		if err := publisher.Publish("order", msgs...); err != nil {
			return err
		}
	}
	return workload.Settle(ctx, e, "watermill_"+topic)
}

// RunForwarder forwards until ctx is done.
func RunForwarder(ctx context.Context, e *harness.Env, topic string, schema wsql.SchemaAdapter, out message.Publisher) error {
	subscriber, err := wsql.NewSubscriber(wsql.BeginnerFromPgx(e.Pool), wsql.SubscriberConfig{
		SchemaAdapter:    schema,
		OffsetsAdapter:   wsql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	defer subscriber.Close()
	f, err := forwarder.NewForwarder(subscriber, out, watermill.NopLogger{}, forwarder.Config{ForwarderTopic: topic, CloseTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	return f.Run(ctx)
}
