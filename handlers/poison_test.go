package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

func failing(err error) func(context.Context, events.Event[placed]) error {
	return func(context.Context, events.Event[placed]) error { return err }
}

func TestPoisonedMessageKeepsItsEnvelope(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.Handle(router, "mail.receipt", failing(errors.New("no such mailbox")))
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	msg := messageOf(t, order(1))
	msg.Metadata["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	msg.Metadata[handlers.HeaderDeliveryCount] = "1"
	r.send(msg)
	r.run(router)
	id := uuid.MustParse(msg.UUID)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 1 }, "it is acked")
	poison := r.broker.only(t, "order.poison")
	if string(poison.Payload) != string(msg.Payload) || poison.UUID != msg.UUID {
		t.Error("payload or UUID have changed")
	}
	at, err := time.Parse(time.RFC3339Nano, poison.Metadata[handlers.HeaderPoisonTime])
	if err != nil || time.Since(at) > time.Minute {
		t.Errorf("time %s, %v", at, err)
	}
	want := maps.Clone(msg.Metadata)
	delete(want, handlers.HeaderDeliveryCount)
	want[handlers.HeaderPoisonTime] = poison.Metadata[handlers.HeaderPoisonTime]
	want[handlers.HeaderPoisonHandler] = "mail.receipt"
	want[handlers.HeaderPoisonReason] = "no such mailbox"
	want[handlers.HeaderPoisonAttempts] = "3"
	want[handlers.HeaderPoisonTopic] = "order"
	want[handlers.HeaderPoisonEventID] = msg.UUID
	if !maps.Equal(poison.Metadata, want) {
		t.Errorf("headers %v\nwant    %v", poison.Metadata, want)
	}
	if r.state("mail.receipt", id) != "poisoned" || r.state("stock.reserve", id) != "handled" || r.effectsOf("stock.reserve") != 1 {
		t.Error("the other handler was not left alone")
	}
	if last := r.last("mail.receipt"); last.Outcome != handlers.OutcomePoisoned || last.Attempts != 3 || last.Err == nil {
		t.Errorf("result %+v", last)
	}

	r.send(msg) // once more
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 2 }, "it is acked")
	r.broker.only(t, "order.poison")
}

func TestPermanentErrorsArePoisonedAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	var calls atomic.Int32
	handlers.HandleTx(router, "stock.reserve", func(context.Context, pgx.Tx, events.Event[placed]) error {
		calls.Add(1)
		return fmt.Errorf("reserve: %w", handlers.Permanent(errors.New("no such article")))
	})
	id := r.publish(order(1))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomePoisoned)
	if calls.Load() != 1 {
		t.Errorf("%d calls", calls.Load())
	}
}

func TestPanicIsAnErrorWithoutItsStack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	var none map[string]int
	for name, f := range map[string]func(){
		"panics.string": func() { panic("boom") },
		"panics.nil":    func() { panic(nil) },
		"panics.error":  func() { panic(errors.New("boom")) },
		"panics.map":    func() { none["x"] = 1 },
		"goexits":       runtime.Goexit,
	} {
		handlers.HandleTx(router, name, func(context.Context, pgx.Tx, events.Event[placed]) error { f(); return nil })
		handlers.Handle(router, name+".plain", func(context.Context, events.Event[placed]) error { f(); return nil })
	}
	r.publish(order(1))
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 1 }, "it is acked")
	poisons := r.broker.waiting("order.poison")
	if len(poisons) != 10 {
		t.Fatalf("%d are poisoned", len(poisons))
	}
	for _, p := range poisons {
		if reason := p.Metadata[handlers.HeaderPoisonReason]; strings.Contains(reason, "[running]") || strings.Contains(reason, ".go:") || len(reason) > 200 {
			t.Errorf("%s: reason %q", p.Metadata[handlers.HeaderPoisonHandler], reason)
		}
	}
	var panicked *handlers.PanicError
	if err := r.last("panics.map").Err; !errors.As(err, &panicked) || !strings.Contains(string(panicked.Stack), "poison_test.go") {
		t.Errorf("the error has no stack: %v", err)
	}
}

func TestHugeErrorTextIsCut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.Handle(router, "mail.receipt", failing(handlers.Permanent(errors.New(strings.Repeat("ü", 5<<20)))))
	id := r.publish(order(1))
	r.run(router)
	r.await("mail.receipt", id, handlers.OutcomePoisoned)
	reason := r.broker.only(t, "order.poison").Metadata[handlers.HeaderPoisonReason]
	if len(reason) > handlers.MaxReasonBytes || len(reason) < handlers.MaxReasonBytes-8 || !utf8.ValidString(reason) || !strings.HasSuffix(reason, "ü…") {
		t.Errorf("%d bytes, ends in %q", len(reason), reason[len(reason)-8:])
	}
}

func TestReasonHidesCredentials(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"dial postgres://bob:canary@db:5432/x?sslmode=off: refused":  "dial postgres://***@db:5432/x?sslmode=off: refused",
		"amqp://u:canary/p@ss@host/vhost":                            "amqp://***@host/vhost",
		"redis://:canary@[::1]:6379":                                 "redis://***@[::1]:6379",
		"host=db user=bob password=canary dbname=x":                  "host=db user=bob password=*** dbname=x",
		"host=db password='canary two' dbname=x":                     "host=db password=*** dbname=x",
		`{"password": "canary two", "user":"bob"}`:                   `{"password": ***, "user":"bob"}`,
		"Authorization: Bearer canary":                               "Authorization: ***",
		"GET /x?token=canary&y=1":                                    "GET /x?token=***&y=1",
		"one\r\ntwo\x00three":                                        "one  two three",
		"bad \xff utf-8":                                             "bad \uFFFD utf-8",
		"see https://example.com/a/b":                                "see https://example.com/a/b",
		"order 17 is not known":                                      "order 17 is not known",
		"postgres://bob:canary" + strings.Repeat("x", 9000) + "@db/": "postgres://***@",
	} {
		if got := handlers.ReasonOf(errors.New(text)); got != want {
			t.Errorf("%.80q\n got %.200q\nwant %q", text, got, want)
		}
	}
	long := "postgres://db/" + strings.Repeat("ü", 600)
	if got := handlers.ReasonOf(errors.New(long)); len(got) > handlers.MaxReasonBytes || !utf8.ValidString(got) {
		t.Errorf("%d bytes", len(got))
	}
}

func TestPoisonQueueDownLosesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.broker.parallel = 1
	router := r.router()
	var calls, refused atomic.Int32
	handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
		calls.Add(1)
		return errors.New("no")
	})
	r.broker.failWith(func(topic string, _ *message.Message) error {
		if topic != "order.poison" {
			return nil
		}
		refused.Add(1)
		return errors.New("the poison queue is down")
	})
	start := time.Now()
	id := r.publish(order(1))
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return refused.Load() >= 20 }, "the poison queue is tried")
	// No hot loop: the pause has grown to 20 ms, less a fifth of jitter.
	if took, least := time.Since(start), 10*16*time.Millisecond; took < least {
		t.Errorf("20 tries took %s, want at least %s", took, least)
	}
	if calls.Load() != 3 {
		t.Errorf("%d attempts, want 3: none more because the poison queue is down", calls.Load())
	}
	if r.state("mail.receipt", id) != "" || r.broker.acked("order") != 0 {
		t.Error("it counts as settled, and is nowhere")
	}
	r.broker.failWith(nil)
	r.await("mail.receipt", id, handlers.OutcomePoisoned)
	if poison := r.broker.only(t, "order.poison"); poison.Metadata[handlers.HeaderPoisonAttempts] != "3" {
		t.Errorf("headers %v", poison.Metadata)
	}
}

// A closed publisher may panic.
func TestPanickingPublisherHarmsNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	handlers.Handle(router, "mail.receipt", failing(errors.New("no")))
	r.broker.failWith(func(topic string, _ *message.Message) error {
		if topic == "order.poison" {
			panic("send on closed channel")
		}
		return nil
	})
	id := r.publish(order(1))
	r.send(message.NewMessage("x", []byte("no event")))
	r.run(router)
	testkit.Eventually(t, soon, func() bool { return router.Stats().Postponed >= 5 }, "both are postponed")
	r.broker.failWith(nil)
	r.await("mail.receipt", id, handlers.OutcomePoisoned)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 2 }, "both are acked")
}

// Another consumer has handled it while this one failed.
func TestWhatWasHandledElsewhereIsNotPoisoned(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.Handle(router, "mail.receipt", func(ctx context.Context, e events.Event[placed]) error {
		_, err := r.pool.Exec(ctx, "INSERT INTO "+pgx.Identifier{r.schema, "inbox"}.Sanitize()+" VALUES ('mail.receipt', $1::uuid, 'handled')", e.EventID)
		return handlers.Permanent(errors.Join(errors.New("no"), err))
	})
	id := r.publish(order(1))
	r.run(router)
	r.await("mail.receipt", id, handlers.OutcomeDuplicate)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 1 }, "it is acked")
	if len(r.broker.waiting("order.poison")) != 0 || r.state("mail.receipt", id) != "handled" {
		t.Error("it is poisoned all the same")
	}
}

func TestUndecodableMessagesArePoisonedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	handlers.HandleTx(router, "report.count", r.book("report.count"))
	garbage := message.NewMessage("", []byte("\x00 no event"))
	foreign := message.NewMessage("x", []byte(`{"stream":"order"}`))
	foreign.Metadata[handlers.HeaderUndecodable] = "the field payload is missing"
	r.send(garbage, foreign)
	id := r.publish(order(1))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomeHandled)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 3 }, "all is acked")
	poisons := r.broker.waiting("order.poison")
	if len(poisons) != 2 || router.Stats().Undecodable != 2 {
		t.Fatalf("%d poisons, stats %+v", len(poisons), router.Stats())
	}
	for _, p := range poisons {
		h := p.Metadata
		if h[handlers.HeaderPoisonHandler] != handlers.UndecodableHandler || h[handlers.HeaderPoisonReason] == "" || h[handlers.HeaderPoisonTopic] != "order" || h[handlers.HeaderUndecodable] != "" {
			t.Errorf("headers %v", h)
		}
	}
}

// T is fine, the data is not: one handler's problem.
func TestDataThatDoesNotFitIsPoisonedForItsHandler(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	e := events.DomainEvent{EventType: "order.placed", SchemaVersion: 2, AggregateID: "1", Data: []byte(`{"cents":"many"}`)}
	id := r.publish(events.Raw(e))
	r.run(router)
	r.await("stock.reserve", id, handlers.OutcomePoisoned)
	if last := r.last("stock.reserve"); last.Attempts != 1 || !strings.Contains(last.Err.Error(), "cents") {
		t.Errorf("%+v", last)
	}
}

func TestVersionsOfTheFutureAreHeld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	old := r.router()
	handlers.HandleTx(old, "stock.reserve", r.book("stock.reserve"))
	handlers.Handle(old, "mail.receipt", failing(nil))
	e := events.DomainEvent{EventType: "order.placed", SchemaVersion: 3, AggregateID: "1", Data: []byte(`{"cents":7}`)}
	id := r.publish(events.Raw(e))
	stop := r.run(old)
	testkit.Eventually(t, soon, func() bool { return old.Stats().Held >= 6 }, "it is held")
	stop()
	if len(r.broker.waiting("order.poison")) != 0 || r.broker.acked("order") != 0 || r.state("stock.reserve", id) != "" {
		t.Error("it was not held")
	}

	deployed := r.router() // the new program
	handlers.Handle(deployed, "stock.reserve", func(_ context.Context, e events.Event[placedV3]) error {
		if e.Data.Cents != 7 {
			return errors.New("wrong data")
		}
		return nil
	})
	r.run(deployed)
	r.await("stock.reserve", id, handlers.OutcomeHandled)
}

type placedV3 struct{ placed }

func (placedV3) EventType() string   { return "order.placed" }
func (placedV3) SchemaVersion() int  { return 3 }
func (placedV3) AggregateID() string { return "" }

func TestOlderVersionsNeedALeave(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.HandleTx(router, "strict", r.book("strict"))
	versions := make(chan int, 1)
	handlers.Handle(router, "lenient", func(_ context.Context, e events.Event[placed]) error {
		versions <- e.SchemaVersion
		return nil
	}, handlers.AcceptFrom(1))
	id := r.publish(events.Raw(events.DomainEvent{EventType: "order.placed", SchemaVersion: 1, AggregateID: "1", Data: []byte(`{}`)}))
	r.run(router)
	r.await("strict", id, handlers.OutcomePoisoned)
	r.await("lenient", id, handlers.OutcomeHandled)
	if v := <-versions; v != 1 {
		t.Errorf("the handler sees version %d", v)
	}
}

// In a router of the user's own, without a Retry inside.
func TestPoisonAlone(t *testing.T) {
	t.Parallel()
	b := newBroker(1)
	poison, err := handlers.Poison(nil, handlers.PoisonConfig{Publisher: b})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	fail := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	later := &handlers.PostponedError{Err: errors.New("later")}
	if err := attempt(fail(later), message.NewMessageWithContext(ctx, "1", nil), poison); !errors.Is(err, handlers.ErrPostponed) {
		t.Errorf("postponed: %v", err)
	}
	cancel()
	if err := attempt(fail(errors.New("no")), message.NewMessageWithContext(ctx, "1", nil), poison); !errors.Is(err, handlers.ErrInterrupted) {
		t.Errorf("interrupted: %v", err)
	}
	if n := len(b.waiting(".poison")); n != 0 {
		t.Errorf("%d are poisoned", n)
	}
	if err := attempt(fail(errors.New("no")), message.NewMessageWithContext(t.Context(), "1", nil), poison); err != nil {
		t.Error(err)
	}
	if p := b.only(t, ".poison"); p.Metadata[handlers.HeaderPoisonAttempts] != "1" || p.Metadata[handlers.HeaderPoisonReason] != "no" {
		t.Errorf("headers %v", p.Metadata)
	}
}
