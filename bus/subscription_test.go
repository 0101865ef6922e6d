package bus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// offline is a bus that works without a server.
func offline(t *testing.T, cfg Config) *EventBus {
	t.Helper()
	b, err := newBus(discard{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func publishOffline(t *testing.T, b *EventBus, evs ...events.Payload) {
	t.Helper()
	err := InTx(t.Context(), offlineDB{}, func(ctx context.Context, tx pgx.Tx) error { return b.Publish(ctx, tx, evs...) })
	if err != nil {
		t.Fatal(err)
	}
}

// A handler may cancel any subscription, its own too; what the Publish under way
// was to call is called all the same.
func TestCancel(t *testing.T) {
	b := offline(t, Config{})
	var calls notes
	var all []*Subscription
	for i := range 3 {
		all = append(all, SubscribeInTx(b, func(_ context.Context, _ pgx.Tx, e events.Event[orderPlaced]) error {
			calls.add(fmt.Sprintf("in-tx %d %s", i, e.AggregateID))
			if i == 1 && e.AggregateID == "2" {
				for _, s := range all {
					s.Cancel()
				}
			}
			return nil
		}))
	}
	all = append(all, SubscribeAfterCommit(b, func(_ context.Context, e events.Event[orderPlaced]) error {
		calls.add("after " + e.AggregateID)
		return nil
	}))
	all[0].Cancel()
	all[0].Cancel()
	publishOffline(t, b, order(1), order(2), order(3))
	publishOffline(t, b, order(4))
	calls.want(t, "in-tx 1 1", "in-tx 2 1", "in-tx 1 2", "in-tx 2 2", "in-tx 1 3", "in-tx 2 3",
		"after 1", "after 2", "after 3")
	if left := b.Subscriptions(); len(left) != 0 {
		t.Fatalf("still subscribed: %v", left)
	}
	(*Subscription)(nil).Cancel()
	new(Subscription).Cancel()

	// The name is free for another Go type.
	if err := wire[orderPlacedToo](b); err != nil {
		t.Fatal(err)
	}
	publishOffline(t, b, orderPlacedToo{"5"})
}

// Run under -race: subscriptions come and go while events are published, each
// cancelled twice at once, and a handler that stays misses nothing.
func TestCancelWhilePublishing(t *testing.T) {
	b := offline(t, Config{})
	var stayed, cancelled atomic.Int64
	SubscribeInTx(b, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { stayed.Add(1); return nil })
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for i := range 200 {
				publishOffline(t, b, order(i))
			}
		})
		all.Go(func() {
			for range 100 {
				s := SubscribeInTx(b, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { cancelled.Add(1); return nil })
				var both sync.WaitGroup
				both.Go(s.Cancel)
				both.Go(s.Cancel)
				both.Wait()
			}
		})
	}
	all.Wait()
	before := cancelled.Load()
	publishOffline(t, b, order("last"))
	if n := stayed.Load(); n != 401 {
		t.Fatalf("the handler that stayed was called %d times", n)
	}
	if cancelled.Load() != before || len(b.Subscriptions()) != 1 {
		t.Fatal("a cancelled handler is still subscribed")
	}
}

func TestSubscriptionsAreListed(t *testing.T) {
	b := offline(t, Config{})
	SubscribeAfterCommit(b, listedAfter)
	s := SubscribeInTx(b, listedInTx)
	SubscribeInTx(b, func(context.Context, pgx.Tx, events.Event[mailSent]) error { return nil })
	var have []string
	for _, i := range b.Subscriptions() {
		have = append(have, i.String()+", "+i.GoType)
	}
	const module = "github.com/postbus/postbus/bus."
	equal(t, have,
		"after-commit bus.listedAfter of stock.reserved v1, "+module+"stockReserved",
		"in-tx bus.listedInTx of order.placed v2, "+module+"orderPlaced",
		"in-tx bus.TestSubscriptionsAreListed.func1 of mail.sent v1, "+module+"mailSent")
	if s.Info() != b.Subscriptions()[1] {
		t.Fatalf("%+v", s.Info())
	}
	if got := (*EventBus)(nil).Subscriptions(); got != nil {
		t.Fatal(got)
	}
	if Kind(9).String() != "kind 9" {
		t.Fatal(Kind(9))
	}
}

func listedAfter(context.Context, events.Event[stockReserved]) error      { return nil }
func listedInTx(context.Context, pgx.Tx, events.Event[orderPlaced]) error { return nil }
