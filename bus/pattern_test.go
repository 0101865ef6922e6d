package bus

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

func rawEvent(eventType string, version int) events.Payload {
	return events.Raw(events.DomainEvent{EventType: eventType, SchemaVersion: version, AggregateID: "1", Data: []byte(`{"a":1}`)})
}

func TestPatterns(t *testing.T) {
	b := offline(t, Config{})
	got := map[string]*notes{}
	for _, p := range []string{"*", "order.*", "order.line.*", "order", "order.placed"} {
		n := &notes{}
		got[p] = n
		SubscribeInTxTo(b, p, func(_ context.Context, tx pgx.Tx, e events.DomainEvent) error {
			if tx == nil || len(e.Data) == 0 {
				t.Errorf("%s: no tx, or no data: %v", p, e)
			}
			n.add(fmt.Sprintf("%s v%d", e.EventType, e.SchemaVersion))
			return nil
		})
		SubscribeAfterCommitTo(b, p, func(_ context.Context, e events.DomainEvent) error {
			n.add("after " + e.EventType)
			return nil
		})
	}
	for _, typed := range []bool{false, true} { // with and without a typed handler of one of them
		if typed {
			SubscribeInTx(b, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { return nil })
		}
		for _, n := range got {
			n.list = nil
		}
		for _, e := range []events.Payload{
			order(1), rawEvent("order.placed", 1), rawEvent("order.line.added", 1), rawEvent("order", 1),
			rawEvent("orders.placed", 1), rawEvent("order.placed_late", 1), rawEvent("order.line", 1),
		} {
			publishOffline(t, b, e)
		}
		got["*"].want(t, "order.placed v2", "after order.placed", "order.placed v1", "after order.placed",
			"order.line.added v1", "after order.line.added", "order v1", "after order", "orders.placed v1", "after orders.placed",
			"order.placed_late v1", "after order.placed_late", "order.line v1", "after order.line")
		got["order.*"].want(t, "order.placed v2", "after order.placed", "order.placed v1", "after order.placed",
			"order.line.added v1", "after order.line.added", "order.placed_late v1", "after order.placed_late", "order.line v1", "after order.line")
		got["order.line.*"].want(t, "order.line.added v1", "after order.line.added")
		got["order"].want(t, "order v1", "after order")
		got["order.placed"].want(t, "order.placed v2", "after order.placed", "order.placed v1", "after order.placed")
	}
}

func TestOrderOfTypedAndUntypedHandlers(t *testing.T) {
	b := offline(t, Config{})
	var calls notes
	typed := func(name string) *Subscription {
		return SubscribeInTx(b, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { calls.add(name); return nil })
	}
	untyped := func(name, pattern string) *Subscription {
		return SubscribeInTxTo(b, pattern, func(context.Context, pgx.Tx, events.DomainEvent) error { calls.add(name); return nil })
	}
	untyped("1", "*")
	typed("2")
	third := untyped("3", "order.*")
	typed("4")
	untyped("5", "stock.*")
	untyped("6", "order.placed")
	SubscribeAfterCommitTo(b, "*", func(context.Context, events.DomainEvent) error { calls.add("after 1"); return nil })
	SubscribeAfterCommit(b, func(context.Context, events.Event[orderPlaced]) error { calls.add("after 2"); return nil })
	publishOffline(t, b, order(1))
	third.Cancel()
	publishOffline(t, b, order(2))
	calls.want(t, "1", "2", "3", "4", "6", "after 1", "after 2", "1", "2", "4", "6", "after 1", "after 2")
	if i := third.Info(); !strings.HasSuffix(i.String(), " of order.*, every version") || i.GoType != "" {
		t.Fatal(i)
	}
}

// An auditor in the transaction, after the handlers whose work it sees, and one
// whose own event matches its pattern.
func TestUntypedHandlersInATransaction(t *testing.T) {
	w := newWorld(t)
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		return w.insert(ctx, tx, e.AggregateID)
	})
	SubscribeInTxTo(w.bus, "*", func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error {
		if e.EventType == "mail.sent" {
			return nil
		}
		var n int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM "+w.table()).Scan(&n); err != nil || n != 1 {
			return fmt.Errorf("%d rows, %w", n, err)
		}
		order, err := events.Typed[orderPlaced](e)
		if err != nil {
			return err
		}
		return w.bus.Publish(ctx, tx, mailSent{order.Data.OrderID})
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order(1)) })
	equal(t, w.loggedKeys(), "order.placed 1", "mail.sent 1")

	SubscribeAfterCommitTo(w.bus, "*", func(context.Context, events.DomainEvent) error { return nil })
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error { return w.bus.Publish(t.Context(), tx, rawEvent("any.thing", 1)) })
	says(t, err, ErrNotInTx, "any.thing", "bus.TestUntypedHandlersInATransaction")
}

func TestPatternsAreCheckedAtTheStart(t *testing.T) {
	b := offline(t, Config{})
	subscribe := func(b *EventBus, p string, h func(context.Context, events.DomainEvent) error) (err error) {
		defer func() { err, _ = recover().(error) }()
		SubscribeAfterCommitTo(b, p, h)
		return nil
	}
	h := func(context.Context, events.DomainEvent) error { return nil }
	for p, part := range map[string]string{
		"": "is empty", "**": "star", "order*": "star", "*.placed": "star", "order.*.added": "star", "*.*": "star",
		".*": "is empty", "Order.*": "'O' at byte 0", "order..*": "ends with a dot", "order.": "ends with a dot",
		strings.Repeat("x", 1000) + ".*": "1000 bytes",
	} {
		says(t, subscribe(b, p, h), ErrWiring, part, `use "*" for every event`, "to the pattern")
	}
	says(t, subscribe(nil, "", nil), ErrWiring, "bus is nil", "handler is nil", "is empty")
	if len(b.Subscriptions()) != 0 {
		t.Fatal("a refused handler was subscribed")
	}
}
