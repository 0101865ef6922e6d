package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

func (r *rig) replayer(cfg handlers.ReplayConfig) *handlers.Replayer {
	r.t.Helper()
	if cfg.Idle == 0 {
		cfg.Idle = 300 * time.Millisecond
	}
	replayer, err := handlers.NewReplayer(r.broker, r.broker, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return replayer
}

func (r *rig) replay(cfg handlers.ReplayConfig) handlers.ReplayReport {
	r.t.Helper()
	parallel := r.broker.parallel
	r.broker.parallel = 1 // a poison queue is read in order
	defer func() { r.broker.parallel = parallel }()
	report, err := r.replayer(cfg).Replay(r.t.Context(), "order.poison")
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

func TestReplayRunsOnlyTheHandlerThatGaveUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var broken atomic.Bool
	broken.Store(true)
	var receipts, replayed atomic.Int32
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		if broken.Load() {
			return errors.New("a bug")
		}
		if d, _ := handlers.DeliveryFrom(ctx); d.Replayed {
			replayed.Add(1)
		}
		return r.book("stock.reserve")(ctx, tx, e)
	})
	handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
		receipts.Add(1)
		return nil
	})
	r.run(router)
	var ids []uuid.UUID
	for i := range 3 {
		ids = append(ids, r.publish(order(i)))
	}
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 3 }, "all is acked")

	broken.Store(false)
	report := r.replay(handlers.ReplayConfig{Filter: func(p handlers.Poisoned) bool {
		return p.EventID == ids[1] && p.Handler == "stock.reserve" && p.Reason == "a bug" && p.Attempts == 3 &&
			p.Topic == "order" && p.EventType == "order.placed" && time.Since(p.At) < time.Minute
	}})
	if want := (handlers.ReplayReport{Seen: 3, Replayed: 1, Kept: 2}); report != want {
		t.Errorf("report %+v, want %+v", report, want)
	}
	r.await("stock.reserve", ids[1], handlers.OutcomeHandled)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 4 }, "the replay is acked")
	if receipts.Load() != 3 || replayed.Load() != 1 {
		t.Errorf("%d receipts, %d replays", receipts.Load(), replayed.Load())
	}
	if a, b := r.state("stock.reserve", ids[1]), r.state("stock.reserve", ids[0]); a != "handled" || b != "poisoned" {
		t.Errorf("states %s and %s", a, b)
	}
	if n := len(r.broker.waiting("order.poison")); n != 2 {
		t.Errorf("%d wait in the poison queue", n)
	}

	if report := r.replay(handlers.ReplayConfig{}); report.Replayed != 2 { // the rest
		t.Errorf("report %+v", report)
	}
	testkit.Eventually(t, soon, func() bool { return r.effectsOf("stock.reserve") == 3 }, "all take effect")
	if n := len(r.broker.waiting("order.poison")); n != 0 || receipts.Load() != 3 {
		t.Errorf("%d wait in the poison queue, %d receipts", n, receipts.Load())
	}
}

// A pass ends although what it replays is poisoned again behind it; and the
// message does not grow.
func TestReplayOfWhatFailsAgainEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router(func(c *handlers.Config) { c.Retry.MaxAttempts = 1 })
	handlers.Handle(router, "mail.receipt", failing(errors.New("no such mailbox")))
	handlers.HandleTx(router, "stock.reserve", func(context.Context, pgx.Tx, events.Event[placed]) error { return errors.New("no stock") })
	r.run(router)
	r.publish(order(1))
	poisons := func() []*message.Message { return r.broker.waiting("order.poison") }
	testkit.Eventually(t, soon, func() bool { return len(poisons()) == 2 }, "two handlers give up")
	var first map[string]message.Metadata
	for cycle := range 25 {
		if report := r.replay(handlers.ReplayConfig{Idle: time.Minute}); report.Replayed != 2 {
			t.Fatalf("cycle %d: %+v", cycle, report)
		}
		testkit.Eventually(t, soon, func() bool { return len(poisons()) == 2 }, "both give up again")
		now := map[string]message.Metadata{}
		for _, p := range poisons() {
			h := maps.Clone(p.Metadata)
			for _, changing := range []string{handlers.HeaderPoisonTime, handlers.HeaderReplayPass} {
				if h[changing] == "" {
					t.Errorf("no %s", changing)
				}
				delete(h, changing)
			}
			now[h[handlers.HeaderPoisonHandler]] = h
		}
		if first == nil {
			first = now
		}
		if fmt.Sprint(first) != fmt.Sprint(now) {
			t.Fatalf("cycle %d: headers %v\nwere %v", cycle, now, first)
		}
	}
}

func TestReplayKeepsWhatItCannotSend(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nowhere := message.NewMessage("a", []byte("?"))
	elsewhere := messageOf(t, order(1))
	elsewhere.Metadata[handlers.HeaderPoisonHandler] = "x"
	elsewhere.Metadata[handlers.HeaderPoisonTopic] = "payroll" // whose poison queue is another
	elsewhere.Metadata[handlers.HeaderPoisonEventID] = elsewhere.UUID
	anonymous := messageOf(t, order(2))
	anonymous.Metadata[handlers.HeaderPoisonHandler] = "x"
	anonymous.Metadata[handlers.HeaderPoisonTopic] = "order"
	if err := r.broker.Publish("order.poison", nowhere, elsewhere, anonymous); err != nil {
		t.Fatal(err)
	}
	if got, want := r.replay(handlers.ReplayConfig{}), (handlers.ReplayReport{Seen: 3, Unreadable: 3}); got != want {
		t.Errorf("report %+v, want %+v", got, want)
	}
	if n := len(r.broker.waiting("order.poison")); n != 3 {
		t.Errorf("%d are left", n)
	}
}

func TestReplayStopsAtItsLimitAndErrors(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i := range 5 {
		msg := messageOf(t, order(i))
		msg.Metadata[handlers.HeaderPoisonHandler] = "x"
		msg.Metadata[handlers.HeaderPoisonTopic] = "order"
		msg.Metadata[handlers.HeaderPoisonEventID] = msg.UUID
		if err := r.broker.Publish("order.poison", msg); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := r.replay(handlers.ReplayConfig{Limit: 2}), (handlers.ReplayReport{Seen: 2, Replayed: 2, Rest: true}); got != want {
		t.Errorf("report %+v, want %+v", got, want)
	}
	if a, b := len(r.broker.waiting("order.poison")), len(r.broker.waiting("order")); a != 3 || b != 2 {
		t.Errorf("%d are left, %d replayed", a, b)
	}
	r.broker.failWith(func(topic string, _ *message.Message) error {
		if topic == "order" {
			return errors.New("down")
		}
		return nil
	})
	report, err := r.replayer(handlers.ReplayConfig{}).Replay(t.Context(), "order.poison")
	if err == nil || report.Replayed != 0 || len(r.broker.waiting("order.poison")) != 3 {
		t.Errorf("%+v, %v, %d are left", report, err, len(r.broker.waiting("order.poison")))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.replayer(handlers.ReplayConfig{}).Replay(ctx, "order.poison"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A crash between the publish and the ack replays once more.
func TestReplayedTwiceTakesEffectOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var broken atomic.Bool
	broken.Store(true)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		if broken.Load() {
			return handlers.Permanent(errors.New("a bug"))
		}
		return r.book("stock.reserve")(ctx, tx, e)
	})
	r.run(router)
	id := r.publish(order(1))
	r.await("stock.reserve", id, handlers.OutcomePoisoned)
	poison := r.broker.only(t, "order.poison")
	broken.Store(false)
	for range 2 {
		if report := r.replay(handlers.ReplayConfig{}); report.Replayed != 1 {
			t.Fatalf("%+v", report)
		}
		if err := r.broker.Publish("order.poison", poison.Copy()); err != nil { // not acked
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 3 }, "all is acked")
	if n := r.effectsOf("stock.reserve"); n != 1 {
		t.Errorf("%d effects", n)
	}
}

// What nobody could decode is replayed for everybody.
func TestReplayOfTheUndecodableIsForAllHandlers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	handlers.HandleTx(router, "report.count", r.book("report.count"))
	r.run(router)
	msg := messageOf(t, order(1))
	msg.Metadata[handlers.HeaderUndecodable] = "the adapter has a bug"
	r.send(msg)
	testkit.Eventually(t, soon, func() bool { return len(r.broker.waiting("order.poison")) == 1 }, "it is poisoned")
	r.replay(handlers.ReplayConfig{})
	testkit.Eventually(t, soon, func() bool { return r.effectsOf("stock.reserve") == 1 && r.effectsOf("report.count") == 1 }, "both handle it")
}
