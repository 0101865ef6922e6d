package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// The events of the wiring tests: each is wrong in one way.
type (
	nameless struct{ orderBase }
	misnamed struct{ orderBase }
	zeroth   struct{ orderBase }
	dynamic  struct {
		orderBase
		Kind *string
	}
	shipped        struct{ orderPlaced } // passes for order.placed v2
	deeplyShipped  struct{ middle }
	middle         struct{ *orderPlaced }
	nextVersion    struct{ orderPlaced } // a version of its own
	decorated      struct{ events.Payload }
	namedField     struct{ Inner orderPlaced }
	orderPlacedToo struct{ OrderID string }
	orderBase      struct{}
)

func (orderBase) AggregateID() string { return "1" }

func (nameless) EventType() string        { return "" }
func (nameless) SchemaVersion() int       { return 0 }
func (misnamed) EventType() string        { return "Order Placed" }
func (misnamed) SchemaVersion() int       { return 1 }
func (zeroth) EventType() string          { return "order.zeroth" }
func (zeroth) SchemaVersion() int         { return -1 }
func (d dynamic) EventType() string       { return "order." + *d.Kind }
func (dynamic) SchemaVersion() int        { return 1 }
func (deeplyShipped) AggregateID() string { return "1" }
func (nextVersion) SchemaVersion() int    { return 3 }
func (namedField) EventType() string      { return "order.named" }
func (namedField) SchemaVersion() int     { return 1 }
func (namedField) AggregateID() string    { return "1" }
func (orderPlacedToo) EventType() string  { return "order.placed" }
func (orderPlacedToo) SchemaVersion() int { return 2 }
func (orderPlacedToo) AggregateID() string {
	return "1"
}

// byPointer is an event by its pointer only.
type byPointer struct{ ID string }

func (*byPointer) EventType() string   { return "by.pointer" }
func (*byPointer) SchemaVersion() int  { return 1 }
func (*byPointer) AggregateID() string { return "1" }

func wire[T events.Payload](b *EventBus) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = v.(*WiringError)
		}
	}()
	SubscribeInTx(b, func(context.Context, pgx.Tx, events.Event[T]) error { return nil })
	return nil
}

func offlineBus(t *testing.T) *EventBus {
	t.Helper()
	b, err := newBus(&watchedLog{}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWiringFaultsPanicAtTheStart(t *testing.T) {
	b := offlineBus(t)
	if err := errors.Join(wire[orderPlaced](b), wire[orderPlaced](b), wire[nextVersion](b), wire[namedField](b)); err != nil {
		t.Fatal(err)
	}
	wired := len(b.Subscriptions())
	for name, c := range map[string]struct {
		err   error
		parts []string
	}{
		"pointer":           {wire[*orderPlaced](b), []string{"it is a pointer", "events.Event[bus.orderPlaced]"}},
		"pointer methods":   {wire[*byPointer](b), []string{"it is a pointer", "declare its methods on the value"}},
		"interface":         {wire[orderEvent](b), []string{"it is an interface"}},
		"Payload itself":    {wire[events.Payload](b), []string{"it is an interface"}},
		"two faults":        {wire[nameless](b), []string{"EventType of its zero value is empty", "SchemaVersion of its zero value is 0"}},
		"bad name":          {wire[misnamed](b), []string{"'O' at byte 0"}},
		"bad version":       {wire[zeroth](b), []string{"SchemaVersion of its zero value is -1", "start at 1"}},
		"name of a value":   {wire[dynamic](b), []string{"zero value panics", "constants"}},
		"promoted":          {wire[shipped](b), []string{"embeds the event bus.orderPlaced", "order.placed v2", "named field"}},
		"promoted deeply":   {wire[deeplyShipped](b), []string{"zero value panics"}},
		"embeds a Payload":  {wire[decorated](b), []string{"zero value panics"}},
		"two types, 1 name": {wire[orderPlacedToo](b), []string{"order.placed v2", "bus.orderPlaced here", "bus.orderPlacedToo"}},
		"no bus":            {wire[mailSent](nil), []string{"the bus is nil"}},
		"empty bus":         {wire[mailSent](new(EventBus)), []string{"the bus is nil or empty"}},
	} {
		t.Run(name, func(t *testing.T) { says(t, c.err, ErrWiring, append(c.parts, "bus.wire")...) })
	}
	t.Run("nil handler", func(t *testing.T) {
		defer func() { says(t, recover().(error), ErrWiring, "the handler is nil", "bus.mailSent") }()
		SubscribeAfterCommit[mailSent](b, nil)
	})
	if len(b.Subscriptions()) != wired {
		t.Fatal("a refused handler was subscribed")
	}
}

// What was not refused at the start, since nobody handles it, is refused when it
// is published, before anything is written.
func TestPublishedTypesAreChecked(t *testing.T) {
	w := newWorld(t)
	if err := wire[orderPlaced](w.bus); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		event events.Payload
		parts []string
	}{
		{shipped{order(1)}, []string{"bus.shipped", "embeds the event bus.orderPlaced"}},
		{&shipped{order(1)}, []string{"bus.shipped", "embeds the event bus.orderPlaced"}},
		{events.With(shipped{order(1)}, events.PartitionKey("k")), []string{"bus.shipped"}},
		{decorated{order(1)}, []string{"bus.decorated", "embeds events.Payload"}},
		{orderPlacedToo{"1"}, []string{"bus.orderPlacedToo", "handlers of order.placed v2", "bus.orderPlaced,"}},
	} {
		err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, c.event)
		})
		says(t, err, ErrWiring, c.parts...)
	}
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, nextVersion{order(1)}, namedField{order(1)}, &byPointer{ID: "1"})
	})
	equal(t, w.loggedKeys(), "order.placed 1", "order.named 1", "by.pointer 1")
}

// The same event after its Go type was renamed, and moved to another package for
// all that anyone can see: the same bytes but for what differs in every event.
func TestRenamedGoTypeChangesNothing(t *testing.T) {
	w := newWorld(t)
	id, at := events.NewID(), time.Unix(1_700_000_000, 0)
	publish := func(p events.Payload) {
		w.inTx(func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, events.With(p, events.ID(id), events.At(at)))
		})
	}
	publish(orderPlaced{OrderID: "1", Cents: 5})
	publish(renamedOrder{OrderID: "1", Cents: 5})
	documents := query[string](w, "SELECT encode(payload, 'escape') FROM "+w.schema+".outbox ORDER BY id")
	if documents[0] != documents[1] {
		t.Fatalf("%s\n%s", documents[0], documents[1])
	}
	called := 0
	SubscribeInTx(w.bus, func(_ context.Context, _ pgx.Tx, e events.Event[renamedOrder]) error { // the handler's side
		called++
		return nil
	})
	stored := w.logged()[0]
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, events.Raw(stored)) })
	if called != 1 {
		t.Fatal("an event stored under the old Go type does not reach the handler of the new one")
	}
}

type renamedOrder orderPlaced

func (renamedOrder) EventType() string     { return "order.placed" }
func (renamedOrder) SchemaVersion() int    { return 2 }
func (e renamedOrder) AggregateID() string { return e.OrderID }

// Run under -race: subscriptions come while events are published, and a handler
// subscribes too.
func TestSubscribeWhilePublishing(t *testing.T) {
	w := newWorld(t)
	var calls, announced notes
	SubscribeInTx(w.bus, func(_ context.Context, _ pgx.Tx, e events.Event[orderPlaced]) error {
		SubscribeInTx(w.bus, func(context.Context, pgx.Tx, events.Event[mailSent]) error { return nil })
		calls.add(e.AggregateID)
		return nil
	})
	var all sync.WaitGroup
	for p := range 3 {
		all.Go(func() {
			for i := range 10 {
				err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
					return w.bus.Publish(ctx, tx, order(fmt.Sprint(p, " ", i)), mailSent{"1"})
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
		all.Go(func() {
			for range 30 {
				SubscribeInTx(w.bus, func(context.Context, pgx.Tx, events.Event[stockReserved]) error { return nil })
				SubscribeAfterCommit(w.bus, func(_ context.Context, e events.Event[orderPlaced]) error {
					announced.add(e.AggregateID)
					return nil
				})
			}
		})
	}
	all.Wait()
	if len(calls.list) != 30 {
		t.Fatalf("%d calls of a handler subscribed before all events", len(calls.list))
	}
	announced.list = nil
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order(1)) })
	if len(announced.list) != 90 {
		t.Fatalf("%d of 90 handlers were called", len(announced.list))
	}
}
