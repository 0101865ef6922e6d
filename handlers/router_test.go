package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

func TestEachMessageReachesAllHandlersOfItsType(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	var receipts, payments atomic.Int32
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	handlers.HandleTx(router, "report.count", r.book("report.count"))
	handlers.Handle(router, "mail.receipt", func(_ context.Context, e events.Event[placed]) error {
		if e.Data.Cents == 0 || e.Data.ID != e.AggregateID {
			return handlers.Permanent(fmt.Errorf("data %+v", e.Data))
		}
		receipts.Add(1)
		return nil
	})
	handlers.Handle(router, "mail.paid", func(context.Context, events.Event[paid]) error {
		payments.Add(1)
		return nil
	})
	const n = 20
	for i := range n {
		r.publish(order(i + 1))
		r.publish(paid{ID: "x"})
	}
	stop := r.run(router)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 2*n }, "all is acked")
	stop()
	if a, b := r.effectsOf("stock.reserve"), r.effectsOf("report.count"); a != n || b != n || receipts.Load() != n || payments.Load() != n {
		t.Errorf("handled %d, %d, %d, %d of %d each", a, b, receipts.Load(), payments.Load(), n)
	}
	s := router.Stats()
	want := handlers.Stats{Messages: 2 * n, Acked: 2 * n, Handled: 4 * n}
	if s != want {
		t.Errorf("stats %+v, want %+v", s, want)
	}
	if r.broker.closed != 0 {
		t.Error("the router has closed a subscriber or publisher that it did not open")
	}
}

func TestHandlerContextCarriesTheEvent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	type seen struct {
		next events.DomainEvent
		d    handlers.Delivery
		key  string
	}
	got := make(chan seen, 1)
	handlers.Handle(router, "mail.receipt", func(ctx context.Context, e events.Event[placed]) error {
		next, err := events.New(ctx, paid{ID: e.Data.ID})
		if err != nil {
			return err
		}
		d, _ := handlers.DeliveryFrom(ctx)
		got <- seen{next, d, e.Key()}
		return nil
	})
	msg := messageOf(t, events.With(order(1), events.PartitionKey("customer-7"), events.CorrelatedWith("checkout-1")))
	msg.Metadata[handlers.HeaderDeliveryCount] = "2"
	r.send(msg)
	r.run(router)
	s := <-got
	if s.next.CorrelationID != "checkout-1" || s.next.CausationID != msg.UUID {
		t.Errorf("an event published by the handler has correlation %q and causation %q", s.next.CorrelationID, s.next.CausationID)
	}
	want := handlers.Delivery{Topic: "order", Handler: "mail.receipt", EventID: uuid.MustParse(msg.UUID), Attempt: 1, Redelivered: true}
	if s.d != want {
		t.Errorf("delivery %+v, want %+v", s.d, want)
	}
	if s.key != "customer-7" {
		t.Errorf("partition key %q", s.key)
	}
}

func TestUnknownTypesAreAcked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	r.publish(paid{ID: "1"})
	bare := messageOf(t, paid{ID: "2"}) // a publisher that sets no headers
	bare.Metadata = nil
	r.send(bare)
	id := r.publish(order(3))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomeHandled)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 3 }, "all is acked")
	if s := router.Stats(); s.UnknownTypes != 2 || s.Handled != 1 {
		t.Errorf("stats %+v", s)
	}
}

// A handler gets its events from its own topic only: the other one may be
// somebody else's of the same name.
func TestEventsOnAnotherTopicAreUnknown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router(func(c *handlers.Config) { c.Topic = func(eventType string) string { return eventType } })
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	handlers.Handle(router, "mail.paid", func(context.Context, events.Event[paid]) error { return nil })
	for _, topic := range []string{"order.paid", "order.placed"} {
		if err := r.broker.Publish(topic, messageOf(t, order(1))); err != nil {
			t.Fatal(err)
		}
	}
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return router.Stats().Acked == 2 }, "both are acked")
	if s := router.Stats(); s.UnknownTypes != 1 || s.Handled != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestResultsTellHowEachDeliveryEnded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.Handle(router, "mail.receipt", func(ctx context.Context, e events.Event[placed]) error {
		if d, _ := handlers.DeliveryFrom(ctx); d.Attempt < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	msg := messageOf(t, order(1))
	r.send(msg, msg)
	r.broker.parallel = 1
	r.run(router)
	id := uuid.MustParse(msg.UUID)
	r.await("mail.receipt", id, handlers.OutcomeDuplicate)
	r.mu.Lock()
	first, second := r.results[0], r.results[1]
	r.mu.Unlock()
	first.Took, second.Took = 0, 0
	want := handlers.HandlerResult{Handler: "mail.receipt", Topic: "order", EventID: id, EventType: "order.placed", Key: "order-1",
		Outcome: handlers.OutcomeHandled, Attempts: 3}
	if first != want {
		t.Errorf("first  %+v\nwant   %+v", first, want)
	}
	want.Outcome, want.Attempts, want.Redelivered = handlers.OutcomeDuplicate, 0, true
	if second != want {
		t.Errorf("second %+v\nwant   %+v", second, want)
	}
	if s := router.Stats(); s.Retried != 2 || s.Duplicates != 1 || s.Handled != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestPanickingHookHarmsNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router(func(c *handlers.Config) { c.OnResult = func(handlers.HandlerResult) { panic("hook") } })
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	r.publish(order(1))
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 1 }, "it is acked")
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.router().Run(t.Context()); !errors.Is(err, handlers.ErrNoHandlers) {
		t.Errorf("no handlers: %v", err)
	}

	router := r.router()
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	stop := r.run(router)
	id := r.publish(order(1))
	r.await("stock.reserve", id, handlers.OutcomeHandled)
	if err := router.Run(t.Context()); !errors.Is(err, handlers.ErrAlreadyRun) {
		t.Errorf("Run twice at once: %v", err)
	}
	stop()
	if err := router.Run(t.Context()); !errors.Is(err, handlers.ErrAlreadyRun) {
		t.Errorf("Run again: %v", err)
	}
	expectWiring(t, "Run has begun", func() { handlers.HandleTx(router, "late", r.book("late")) })

	missing := r.router(func(c *handlers.Config) { c.Schema = r.schema + "_not" })
	handlers.HandleTx(missing, "stock.reserve", r.book("stock.reserve"))
	if err := missing.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "call migrations.Up") {
		t.Errorf("no inbox: %v", err)
	}

	forbidden := r.router(func(c *handlers.Config) {
		c.Topic = func(eventType string) string {
			if eventType == "order.paid" {
				return "forbidden"
			}
			return "order"
		}
	})
	handlers.HandleTx(forbidden, "stock.reserve", r.book("stock.reserve"))
	handlers.Handle(forbidden, "mail.paid", func(context.Context, events.Event[paid]) error { return nil })
	if err := forbidden.Run(t.Context()); err == nil || !strings.Contains(err.Error(), `subscribe to topic "forbidden": not authorized`) {
		t.Errorf("a topic that cannot be subscribed to: %v", err)
	}
}

func TestConfigFaultsAreReportedTogether(t *testing.T) {
	t.Parallel()
	_, err := handlers.NewRouter(nil, handlers.Config{
		Schema: "No Schema", InboxTimeout: -1, IdleTimeout: -5, Timeout: -7, CloseTimeout: -1,
		Retry:    handlers.RetryConfig{MaxAttempts: -1, Initial: -1, MaxInterval: -2, Multiplier: 0.5, Jitter: 3, MaxElapsed: -1},
		SlowNack: handlers.SlowNackConfig{Initial: -1, Max: -2},
		Poison:   handlers.PoisonConfig{Timeout: -1},
	})
	if !errors.Is(err, handlers.ErrInvalidConfig) {
		t.Fatalf("got %v", err)
	}
	for _, field := range []string{"subscriber", "Config.Pool", "Config.Schema", "Config.InboxTimeout", "Config.IdleTimeout",
		"Config.Timeout", "Config.CloseTimeout", "Config.Retry.MaxAttempts", "Config.Retry.Initial", "Config.Retry.MaxInterval",
		"Config.Retry.Multiplier", "Config.Retry.Jitter", "Config.Retry.MaxElapsed", "Config.SlowNack.Initial", "Config.SlowNack.Max",
		"Config.Poison.Publisher", "Config.Poison.Timeout"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("the error does not name %s:\n%v", field, err)
		}
	}
}

type embeds struct{ placed }

type embedsNil struct{ *placed }

func TestWiringFaultsAreNamed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	ok := func(context.Context, events.Event[placed]) error { return nil }
	handlers.Handle(router, "taken", ok)
	expectWiring(t, "the name is taken", func() { handlers.Handle(router, "taken", ok) })
	expectWiring(t, "the function is nil", func() { handlers.Handle[placed](router, "nil", nil) })
	expectWiring(t, "the function is nil", func() { handlers.HandleTx[placed](router, "nil", nil) })
	expectWiring(t, "the router is nil", func() { handlers.Handle(nil, "x", ok) })
	expectWiring(t, "the name must be", func() { handlers.Handle(router, "a name\n", ok) })
	expectWiring(t, "reserved", func() { handlers.Handle(router, "postbus.mine", ok) })
	expectWiring(t, "AcceptFrom(3)", func() { handlers.Handle(router, "x", ok, handlers.AcceptFrom(3)) })
	expectWiring(t, "WithRetry.MaxAttempts", func() {
		handlers.Handle(router, "x", ok, handlers.WithRetry(handlers.RetryConfig{MaxAttempts: -1}), handlers.WithTimeout(-3))
	})
	expectWiring(t, "pointer", func() {
		handlers.Handle(router, "x", func(context.Context, events.Event[*placed]) error { return nil })
	})
	expectWiring(t, "interface", func() {
		handlers.Handle(router, "x", func(context.Context, events.Event[events.Payload]) error { return nil })
	})
	expectWiring(t, "embeds the event", func() {
		handlers.Handle(router, "x", func(context.Context, events.Event[embeds]) error { return nil })
	})
	expectWiring(t, "panics", func() {
		handlers.Handle(router, "x", func(context.Context, events.Event[embedsNil]) error { return nil })
	})
	expectWiring(t, "Config.Topic", func() {
		nowhere := r.router(func(c *handlers.Config) { c.Topic = func(string) string { return "" } })
		handlers.Handle(nowhere, "x", ok)
	})
}

func expectWiring(t *testing.T, text string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		err, _ := recover().(error)
		var wiring *handlers.WiringError
		if !errors.As(err, &wiring) || !errors.Is(err, handlers.ErrWiring) || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want a *WiringError with %q", err, text)
		}
	}()
	f()
}

func TestEndedSubscriptionEndsRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cfg := r.config()
	ctx, cancel := context.WithCancel(context.Background())
	router, err := handlers.NewRouter(endable{r.broker, ctx}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	done := make(chan error, 1)
	go func() { done <- router.Run(t.Context()) }()
	id := r.publish(order(1))
	r.await("stock.reserve", id, handlers.OutcomeHandled)
	cancel()
	if err := <-done; !errors.Is(err, handlers.ErrSubscriptionEnded) || !strings.Contains(err.Error(), `"order"`) {
		t.Errorf("got %v", err)
	}
}
