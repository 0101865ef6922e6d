package postbustest_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/postbustest"
)

// orderEvent is the event interface of a domain of its own.
type orderEvent interface {
	events.Payload
	isOrderEvent()
}

type shipped struct {
	OrderID string
	hidden  int
}

func (*shipped) EventType() string     { return "order.shipped" }
func (*shipped) SchemaVersion() int    { return 2 }
func (s *shipped) AggregateID() string { return s.OrderID }
func (*shipped) isOrderEvent()         {}

// What domains declare, and what the real bus and ours are both good for.
var (
	_ interface {
		Publish(context.Context, pgx.Tx, ...orderEvent) error
	} = (*postbustest.Bus[orderEvent])(nil)
	_ interface {
		Publish(context.Context, pgx.Tx, ...events.Payload) error
	} = (*postbustest.Bus[events.Payload])(nil)
	_ interface {
		Publish(context.Context, pgx.Tx, ...events.Payload) error
	} = (*bus.EventBus)(nil)
)

func TestBusRemembersTyped(t *testing.T) {
	t.Parallel()
	var told postbustest.Bus[events.Payload]
	ctx := events.ContextWithCorrelation(t.Context(), "c-1")
	placed := &OrderPlaced{OrderID: "o-1", Cents: 5}
	if err := told.Publish(ctx, nil, placed, events.With(OrderCancelled{OrderID: "o-2"}, events.PartitionKey("k"))); err != nil {
		t.Fatal(err)
	}
	placed.Cents = 6 // by the domain, later
	e := postbustest.RequirePublished[OrderPlaced](t, &told, postbustest.Times(1), postbustest.WithKey("o-1"))[0]
	if e.Data.Cents != 5 || e.CorrelationID != "c-1" {
		t.Errorf("got %+v", e)
	}
	postbustest.RequirePublished[OrderCancelled](t, &told, postbustest.WithKey("k"))
	if got := told.Payloads(); len(got) != 2 || got[0] != events.Payload(placed) {
		t.Errorf("payloads %v", got)
	}

	var domain postbustest.Bus[orderEvent]
	postbustest.RequireNothingPublished(t, &domain)
	if err := domain.Publish(t.Context(), nil, &shipped{OrderID: "o-1", hidden: 3}); err != nil {
		t.Fatal(err)
	}
	if s := domain.Payloads()[0].(*shipped); s.hidden != 3 {
		t.Errorf("got %+v", s)
	}
}

func TestBusRefusesWhatTheRealOneRefuses(t *testing.T) {
	t.Parallel()
	var told postbustest.Bus[events.Payload]
	for name, p := range map[string]events.Payload{
		"no aggregate": OrderPlaced{},
		"nil pointer":  (*OrderPlaced)(nil),
		"too large":    OrderPlaced{OrderID: "o-1" + strings.Repeat("x", 300)},
		"over 256 KiB": events.Raw(events.DomainEvent{EventType: "big", AggregateID: "a", Data: []byte(`"` + strings.Repeat("x", events.MaxDocumentBytes) + `"`)}),
	} {
		if err := told.Publish(t.Context(), nil, OrderCancelled{OrderID: "o-1"}, p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	mine := errors.New("mine")
	told.FailWith(mine)
	if err := told.Publish(t.Context(), nil, OrderCancelled{OrderID: "o-1"}); !errors.Is(err, mine) {
		t.Errorf("got %v", err)
	}
	postbustest.RequireNothingPublished(t, &told)
	told.FailWith(nil)
	if err := told.Publish(t.Context(), nil, OrderCancelled{OrderID: "o-1"}); err != nil {
		t.Error(err)
	}
}

func TestBusFromManyGoroutines(t *testing.T) {
	t.Parallel()
	var told postbustest.Bus[OrderPlaced]
	var publishing sync.WaitGroup
	for range 20 {
		publishing.Go(func() {
			if err := told.Publish(context.Background(), nil, OrderPlaced{OrderID: "o-1"}); err != nil {
				t.Error(err)
			}
			told.Payloads()
		})
	}
	publishing.Wait()
	postbustest.RequirePublished[OrderPlaced](t, &told, postbustest.Times(20))
}
