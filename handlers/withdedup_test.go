package handlers_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/broker/redisstream"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

// inRedis is a store for WithDedup on the real server, at an address or directly.
func inRedis(t *testing.T, client *redis.Client) *redisstream.Dedup {
	t.Helper()
	d, err := redisstream.NewDedup(redisstream.DedupConfig{Client: client, Prefix: testkit.Prefix(t), Timeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A failed first try is no duplicate, however it failed; a success is, and the
// inbox has heard nothing of it. Beside it another handler has the inbox.
func TestWithDedupRemembersInTheStore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	store := inRedis(t, testkit.Redis(t))
	var calls atomic.Int32
	handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
		switch calls.Add(1) {
		case 1:
			return errors.New("tried again in place")
		case 2:
			panic("tried again in place")
		case 3:
			return handlers.RetryAfter(errors.New("given back"), 50*time.Millisecond)
		}
		return nil
	}, handlers.WithDedup(store), handlers.WithRetry(handlers.RetryConfig{MaxAttempts: 9, Initial: time.Millisecond, MaxElapsed: 40 * time.Millisecond}))
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	r.run(router)
	msg := messageOf(t, order(1))
	id := uuid.MustParse(msg.UUID)
	r.send(msg)
	r.await("mail.receipt", id, handlers.OutcomeHandled)
	if !slices.Contains(r.outcomes("mail.receipt", id), handlers.OutcomePostponed) {
		t.Errorf("outcomes %v: it was not given back", r.outcomes("mail.receipt", id))
	}
	n := calls.Load()
	r.send(msg, msg)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 3 }, "all are acked")
	if calls.Load() != n || n < 4 {
		t.Errorf("%d calls, %d of them for duplicates", calls.Load(), calls.Load()-n)
	}
	if state, _, err := store.Claim(t.Context(), "mail.receipt", id); state != handlers.ClaimDone || err != nil {
		t.Errorf("the store says %v, %v", state, err)
	}
	if inbox := r.state("mail.receipt", id); inbox != "" {
		t.Errorf("the inbox says %q", inbox)
	}
	if inbox, effects := r.state("stock.reserve", id), r.effectsOf("stock.reserve"); inbox != "handled" || effects != 1 {
		t.Errorf("the other handler: %q, %d effects", inbox, effects)
	}
}

// Copies that arrive at once, in two programs: one is handled, the others are given
// back until it is known how that ends.
func TestWithDedupOneAtATime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client := testkit.Redis(t)
	store := inRedis(t, client)
	inside, goOn := make(chan struct{}, 1), make(chan struct{})
	var calls, running atomic.Int32
	for range 2 {
		router := r.router()
		handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
			if running.Add(1) > 1 {
				t.Error("two at once")
			}
			defer running.Add(-1)
			if calls.Add(1) == 1 {
				inside <- struct{}{}
				<-goOn
				return handlers.Permanent(errors.New("not this time"))
			}
			return nil
		}, handlers.WithDedup(store))
		r.run(router)
	}
	msg := messageOf(t, order(1))
	r.send(msg, msg, msg, msg, msg)
	<-inside
	testkit.Eventually(t, soon, func() bool { return r.broker.nacked("order") > 5 }, "the copies are given back")
	if calls.Load() != 1 || r.broker.acked("order") != 0 {
		t.Errorf("%d calls, %d acks beside the first", calls.Load(), r.broker.acked("order"))
	}
	close(goOn)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 5 }, "all are acked")
	if n, poisoned := calls.Load(), len(r.broker.waiting("order.poison")); n > 2 || poisoned != 1 {
		t.Errorf("%d calls, %d poisoned", n, poisoned)
	}
}

// While Redis is away messages are given back, nothing is poisoned, and what was
// handled as it went away is not handled again.
func TestWithDedupWithoutItsStore(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.RedisServer))
	store := inRedis(t, testkit.RedisAt(t, proxy.URL(), func(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 }))
	router := r.router()
	var calls atomic.Int32
	handlers.Handle(router, "mail.receipt", func(_ context.Context, e events.Event[placed]) error {
		calls.Add(1)
		if e.Data.Cents == 1 {
			proxy.Refuse()
			proxy.CutAll()
		}
		return nil
	}, handlers.WithDedup(store))
	r.run(router)
	r.publish(order(1))
	testkit.Eventually(t, soon, func() bool { return r.broker.nacked("order") > 3 }, "the event that was handled is given back")
	r.publish(order(2))
	testkit.Eventually(t, soon, func() bool { return len(r.outcomes("mail.receipt", uuid.Nil)) > 20 }, "both are given back")
	if calls.Load() != 1 || r.broker.acked("order") != 0 {
		t.Errorf("%d calls, %d acks while the store is away", calls.Load(), r.broker.acked("order"))
	}
	proxy.Resume()
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 2 }, "both are acked")
	if calls.Load() != 2 || len(r.broker.waiting("order.poison")) != 0 {
		t.Errorf("%d calls of two events, %d poisoned", calls.Load(), len(r.broker.waiting("order.poison")))
	}
}

// A message that comes again because of another handler is not poisoned a second
// time, and its replay is handled.
func TestWithDedupPoisonsOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	var broken, blocked atomic.Bool
	broken.Store(true)
	blocked.Store(true)
	var calls atomic.Int32
	handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
		calls.Add(1)
		if broken.Load() {
			return handlers.Permanent(errors.New("a bug"))
		}
		return nil
	}, handlers.WithDedup(inRedis(t, testkit.Redis(t))))
	handlers.Handle(router, "another", func(context.Context, events.Event[placed]) error {
		if blocked.Load() {
			return &handlers.PostponedError{Err: errors.New("not now")}
		}
		return nil
	})
	r.run(router)
	id := r.publish(order(1))
	testkit.Eventually(t, soon, func() bool { return r.broker.nacked("order") > 5 }, "it comes again and again")
	blocked.Store(false)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 1 }, "it is acked")
	poisoned := r.broker.waiting("order.poison")
	if calls.Load() != 1 || len(poisoned) != 1 {
		t.Fatalf("%d calls, %d poisoned; want 1 and 1", calls.Load(), len(poisoned))
	}
	broken.Store(false)
	replayed := messageOf(t, order(1))
	replayed.UUID, replayed.Payload = poisoned[0].UUID, poisoned[0].Payload
	replayed.Metadata[handlers.HeaderReplayFor] = "mail.receipt"
	r.send(replayed, replayed)
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 3 }, "its replays are acked")
	if calls.Load() != 2 {
		t.Errorf("%d calls, want one for the event and one for its replays", calls.Load())
	}
	r.await("mail.receipt", id, handlers.OutcomeHandled) // in whichever order
	r.await("mail.receipt", id, handlers.OutcomeDuplicate)
}

func TestWithDedupIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	expectWiring(t, "HandleTx records", func() {
		handlers.HandleTx(router, "x", r.book("x"), handlers.WithDedup(newShelf()))
	})
	expectWiring(t, "the store is nil", func() {
		handlers.Handle(router, "x", func(context.Context, events.Event[placed]) error { return nil }, handlers.WithDedup(nil))
	})
}
