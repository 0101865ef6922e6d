package peer

import (
	"context"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
)

// WatermillSQL publishes by watermill-sql alone, without the forwarder's envelope.
type WatermillSQL struct {
	e         *harness.Env
	publisher *wsql.Publisher
}

const watermillTopic = "orders"

// NewWatermillSQL creates the topic's table.
func NewWatermillSQL(ctx context.Context, e *harness.Env) (*WatermillSQL, error) {
	p, err := wsql.NewPublisher(wsql.BeginnerFromPgx(e.Pool),
		wsql.PublisherConfig{SchemaAdapter: wsql.DefaultPostgreSQLSchema{}, AutoInitializeSchema: true}, watermill.NopLogger{})
	if err != nil {
		return nil, err
	}
	w := &WatermillSQL{e: e, publisher: p}
	return w, w.PublishMany(ctx, []workload.Order{workload.OrderOf(0)}) // creates the table
}

// Empty truncates the topic's table.
func (w *WatermillSQL) Empty(ctx context.Context) error {
	_, err := w.e.Pool.Exec(ctx, "TRUNCATE "+w.e.Table("watermill_"+watermillTopic))
	return err
}

// PublishMany publishes orders in one call, which is one statement.
func (w *WatermillSQL) PublishMany(ctx context.Context, orders []workload.Order) error {
	msgs := make([]*message.Message, len(orders))
	for i, o := range orders {
		msgs[i] = orderMessage(ctx, o)
	}
	return w.publisher.Publish(watermillTopic, msgs...)
}

// Publish publishes one message in the caller's transaction, through a publisher of
// that transaction's own, as its documentation has it.
func (w *WatermillSQL) Publish(ctx context.Context, tx pgx.Tx, o workload.Order) error {
	p, err := wsql.NewPublisher(wsql.TxFromPgx(tx), wsql.PublisherConfig{SchemaAdapter: wsql.DefaultPostgreSQLSchema{}}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	return p.Publish(watermillTopic, orderMessage(ctx, o))
}

// orderMessage carries the same document as ours: an application that goes without an
// outbox of this kind has its own envelope.
func orderMessage(ctx context.Context, o workload.Order) *message.Message {
	m := message.NewMessage(watermill.NewUUID(), workload.Encoded(o))
	m.Metadata.Set("partition_key", o.OrderID)
	m.SetContext(ctx)
	return m
}
