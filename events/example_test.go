package events_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
)

// OrderPlaced is a fact of a domain. It needs nothing of this module.
type OrderPlaced struct {
	OrderID    string `json:"order_id"`
	TotalCents int64  `json:"total_cents"`
}

func (OrderPlaced) EventType() string     { return "order.placed" }
func (OrderPlaced) SchemaVersion() int    { return 1 }
func (e OrderPlaced) AggregateID() string { return e.OrderID }

// An event is built, written, and read again.
func Example() {
	e, err := events.New(context.Background(), OrderPlaced{OrderID: "o-1", TotalCents: 4200})
	if err != nil {
		fmt.Println(err)
		return
	}
	document, err := e.Encode()
	if err != nil {
		fmt.Println(err)
		return
	}
	back, err := events.Decode(document)
	if err != nil {
		fmt.Println(err)
		return
	}
	placed, err := events.Typed[OrderPlaced](back)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(placed.EventType, placed.Key(), placed.Data.TotalCents)
	// Output: order.placed o-1 4200
}

// The document, with id and time given so that they can be shown.
func ExampleDomainEvent_Encode() {
	e, _ := events.New(context.Background(), events.With(OrderPlaced{OrderID: "o-1", TotalCents: 4200},
		events.ID(uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057")),
		events.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)),
		events.CorrelatedWith("request-7"),
	))
	document, _ := e.Encode()
	fmt.Printf("%s\n", document)
	// Output: {"event_id":"01890a5d-ac96-774b-bcce-b302099a8057","event_type":"order.placed","schema_version":1,"aggregate_id":"o-1","timestamp":"2026-03-01T12:00:00Z","correlation_id":"request-7","data":{"order_id":"o-1","total_cents":4200}}
}

// With sets what holds for one publication only.
func ExampleWith() {
	e, _ := events.New(context.Background(), events.With(OrderPlaced{OrderID: "o-1"},
		events.PartitionKey("customer-9"), // in order with all else of this customer
		events.Metadata("tenant", "acme"),
	))
	fmt.Println(e.AggregateID, e.Key(), e.Metadata["tenant"])
	// Output: o-1 customer-9 acme
}

// Raw publishes what has no Go type here, such as an event taken over from
// another system.
func ExampleRaw() {
	e, err := events.New(context.Background(), events.Raw(events.DomainEvent{
		EventType:   "stock.counted",
		AggregateID: "shelf-7",
		Data:        json.RawMessage(`{"pieces": 12}`),
	}))
	fmt.Println(e.EventType, e.SchemaVersion, string(e.Data), err)
	// Output: stock.counted 1 {"pieces": 12} <nil>
}

// An event published from inside a handler continues the chain of the event
// handled.
func ExampleContextHandling() {
	root, _ := events.New(events.ContextWithCorrelation(context.Background(), "request-7"), OrderPlaced{OrderID: "o-1"})

	ctx := events.ContextHandling(context.Background(), root) // the router does this
	next, _ := events.New(ctx, OrderPlaced{OrderID: "o-2"})
	fmt.Println(next.CorrelationID, next.CausationID == root.EventID.String())
	// Output: request-7 true
}

// The same entity, action and moment give the same key, in any time zone.
func ExampleIdempotencyKey() {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	fmt.Println(events.IdempotencyKey("o-1", "place", at) == events.IdempotencyKey("o-1", "place", at.Local()))
	fmt.Println(len(events.IdempotencyKey("o-1", "place", at)))
	// Output:
	// true
	// 64
}

// Bad input is refused with an error that can be branched on, and that says what
// to do.
func ExampleInvalidEventError() {
	_, err := events.New(context.Background(), events.With(OrderPlaced{},
		events.ID(uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057"))))

	var invalid *events.InvalidEventError
	if errors.As(err, &invalid) && errors.Is(err, events.ErrInvalidEvent) {
		fmt.Println(invalid.Field)
	}
	fmt.Println(err)
	// Output:
	// aggregate_id
	// events: cannot build event order.placed 01890a5d-ac96-774b-bcce-b302099a8057: aggregate_id is empty, and so is the partition key, so that nothing orders the event: name the aggregate, or give a key by events.With(payload, events.PartitionKey(key))
}

// Whoever has a size limit checks the document against it.
func ExampleDomainEvent_CheckSize() {
	e := events.DomainEvent{EventType: "photo.taken"}
	err := e.CheckSize(1<<20, events.MaxDocumentBytes)
	fmt.Println(errors.Is(err, events.ErrTooLarge))
	fmt.Println(err)
	// Output:
	// true
	// events: event photo.taken takes 1048576 bytes and the limit is 262144: keep the bulk elsewhere and publish a reference to it
}

// The data of an event of another type or version is not guessed at.
func ExampleTyped() {
	e, _ := events.New(context.Background(), events.Raw(events.DomainEvent{
		EventType: "order.placed", SchemaVersion: 2, AggregateID: "o-1", Data: json.RawMessage(`{}`),
	}))
	_, err := events.Typed[OrderPlaced](e)
	fmt.Println(errors.Is(err, events.ErrMismatch))
	// Output: true
}
