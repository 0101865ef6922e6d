package handlers_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

// attempt runs h through mws, outermost first, on one message.
func attempt(h func(ctx context.Context) error, msg *message.Message, mws ...message.HandlerMiddleware) error {
	next := message.HandlerFunc(func(msg *message.Message) ([]*message.Message, error) { return nil, h(msg.Context()) })
	for _, mw := range slices.Backward(mws) {
		next = mw(next)
	}
	_, err := next(msg)
	return err
}

func mustRetry(t *testing.T, cfg handlers.RetryConfig) message.HandlerMiddleware {
	t.Helper()
	mw, err := handlers.Retry(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return mw
}

func TestRetryWaitsAreExact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		retry := mustRetry(t, handlers.RetryConfig{MaxAttempts: 6, Initial: 10 * time.Millisecond, MaxInterval: 50 * time.Millisecond, Jitter: handlers.NoJitter})
		start := time.Now()
		var at []time.Duration
		err := attempt(func(context.Context) error {
			at = append(at, time.Since(start)/time.Millisecond)
			return errors.New("no")
		}, message.NewMessage("1", nil), retry)
		if want := []time.Duration{0, 10, 30, 70, 120, 170}; !slices.Equal(at, want) {
			t.Errorf("attempts at %d ms, want %d", at, want)
		}
		var gaveUp *handlers.GaveUpError
		if !errors.As(err, &gaveUp) || gaveUp.Attempts != 6 {
			t.Errorf("got %v", err)
		}
	})
}

// However long the handler takes, and whatever it asks for, a delivery is held no
// longer than MaxElapsed.
func TestRetryStaysBelowItsCap(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			between := func(least, most time.Duration) time.Duration {
				return least + time.Duration(random.Int64N(int64(most-least)))
			}
			limit := between(time.Second, time.Minute)
			retry := mustRetry(t, handlers.RetryConfig{
				MaxAttempts: 1 + random.IntN(20), Initial: between(time.Millisecond, 5*time.Second),
				MaxInterval: between(5*time.Second, time.Minute), Multiplier: 1 + 3*random.Float64(), MaxElapsed: limit,
			})
			start := time.Now()
			err := attempt(func(ctx context.Context) error {
				select {
				case <-time.After(between(0, 10*time.Second)):
				case <-ctx.Done():
					return ctx.Err()
				}
				if random.IntN(3) == 0 {
					return handlers.RetryAfter(errors.New("busy"), between(0, 20*time.Second))
				}
				return errors.New("no")
			}, message.NewMessage("1", nil), retry, handlers.Timeout(5*time.Second))
			if held := time.Since(start); held > limit {
				t.Errorf("seed %d: held for %s, the limit is %s", seed, held, limit)
			}
			if !errors.Is(err, handlers.ErrGaveUp) && !errors.Is(err, handlers.ErrPostponed) {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
}

func TestAttemptAfterATimeoutHasTimeAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		err := attempt(func(ctx context.Context) error {
			if calls++; calls == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return ctx.Err()
		}, message.NewMessage("1", nil), mustRetry(t, handlers.RetryConfig{}), handlers.Timeout(time.Second), handlers.Recover())
		if err != nil || calls != 2 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
}

func TestTimeoutGivesTheContextBack(t *testing.T) {
	t.Parallel()
	msg := message.NewMessageWithContext(t.Context(), "1", nil)
	err := attempt(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, msg, handlers.Timeout(time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "its timeout of 1ms") {
		t.Error(err)
	}
	if msg.Context() != t.Context() {
		t.Error("the message keeps the attempt's context")
	}
}

func TestRetryAfterIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		retry := mustRetry(t, handlers.RetryConfig{MaxAttempts: 3, MaxElapsed: time.Minute})
		var at []time.Duration
		start := time.Now()
		asks := []time.Duration{20 * time.Second, 10 * time.Minute, time.Second}
		handler := retry(func(msg *message.Message) ([]*message.Message, error) {
			ask := asks[len(at)]
			at = append(at, time.Since(start))
			return nil, handlers.RetryAfter(errors.New("busy"), ask)
		})
		for {
			_, err := handler(message.NewMessage("1", nil))
			if errors.Is(err, handlers.ErrGaveUp) {
				break
			}
			var postponed *handlers.PostponedError
			if !errors.As(err, &postponed) || postponed.After <= 0 {
				t.Fatalf("got %v", err)
			}
			time.Sleep(time.Minute) // until the broker delivers again; the clock is the test's own
		}
		if want := []time.Duration{0, 20 * time.Second, 20*time.Second + 10*time.Minute}; len(at) != 3 || at[1] != want[1] || at[2] < want[2] || at[2] > want[2]+time.Minute {
			t.Errorf("attempts at %v, want %v", at, want)
		}
	})
}

func TestSlowNackGrowsAndRecovers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow, err := handlers.SlowNack(handlers.SlowNackConfig{Initial: time.Second, Max: 4 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		var fault error
		handler := slow(func(*message.Message) ([]*message.Message, error) { return nil, fault })
		took := func(with error) time.Duration {
			fault = with
			start := time.Now()
			_, _ = handler(message.NewMessage("1", nil))
			return time.Since(start)
		}
		down := errors.New("down")
		for i, want := range []time.Duration{1, 2, 4, 4, 4} {
			if got := took(down); got > want*time.Second || got < want*time.Second*4/5 {
				t.Errorf("pause %d is %s, want %d s less a fifth at most", i, got, want)
			}
		}
		if took(nil) != 0 || took(down) > time.Second {
			t.Error("a success does not end the streak")
		}
		took(nil)
		if got := took(&handlers.PostponedError{After: time.Hour, Err: down}); got < 3200*time.Millisecond {
			t.Errorf("an event that asks for an hour is held for %s", got)
		}
		if took(handlers.ErrInterrupted) != 0 {
			t.Error("an interrupted delivery is held")
		}
	})
}

// The middlewares in a Watermill router of the user's own.
func TestMiddlewaresServeInAnyWatermillRouter(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	inbox, err := handlers.NewInbox(r.own, handlers.InboxConfig{Schema: r.schema})
	if err != nil {
		t.Fatal(err)
	}
	poison, err := handlers.Poison(inbox, handlers.PoisonConfig{Publisher: r.broker})
	if err != nil {
		t.Fatal(err)
	}
	slow, err := handlers.SlowNack(handlers.SlowNackConfig{Initial: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	router.AddMiddleware(slow, poison)
	settled := make(chan string, 10)
	book := router.AddConsumerHandler("stock.reserve", "order", r.broker, func(msg *message.Message) error {
		_, err := handlers.TxFrom(msg.Context()).Exec(msg.Context(), "INSERT INTO "+r.effects()+" VALUES ('stock.reserve', $1::uuid)", msg.UUID)
		return err
	})
	book.AddMiddleware(mustRetry(t, quick), handlers.InTx(inbox), handlers.Timeout(time.Second), handlers.Recover())
	fail := router.AddConsumerHandler("mail.receipt", "mail", r.broker, func(msg *message.Message) error {
		settled <- msg.UUID
		panic("no")
	})
	fail.AddMiddleware(handlers.Dedup(inbox), mustRetry(t, quick), handlers.Timeout(time.Second), handlers.Recover())

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- router.Run(ctx) }()
	msg := messageOf(t, order(1))
	r.send(msg, msg)
	if err := r.broker.Publish("mail", msg, msg); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, soon, func() bool { return r.broker.acked("order") == 2 && r.broker.acked("mail") == 2 }, "all is acked")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r.effectsOf("stock.reserve") != 1 {
		t.Errorf("%d effects", r.effectsOf("stock.reserve"))
	}
	for _, p := range r.broker.waiting("mail.poison") {
		if p.Metadata[handlers.HeaderPoisonHandler] != "mail.receipt" || p.Metadata[handlers.HeaderPoisonTopic] != "mail" || p.Metadata[handlers.HeaderPoisonEventID] != msg.UUID || p.Metadata[handlers.HeaderPoisonAttempts] != "3" {
			t.Errorf("headers %v", p.Metadata)
		}
	}
	// Both copies may have run side by side, three attempts each: at least once. The
	// second is poisoned only if it looked into the inbox before the first was recorded.
	if n := len(r.broker.waiting("mail.poison")); n < 1 || 3*n > len(settled) || len(settled) > 6 {
		t.Errorf("%d poisoned, %d calls", n, len(settled))
	}
}

func TestMiddlewareConfigFaultsAreErrors(t *testing.T) {
	t.Parallel()
	_, err1 := handlers.Retry(handlers.RetryConfig{Multiplier: 0.1})
	_, err2 := handlers.SlowNack(handlers.SlowNackConfig{Max: -1})
	_, err3 := handlers.Poison(nil, handlers.PoisonConfig{})
	_, err4 := handlers.NewInbox(nil, handlers.InboxConfig{})
	_, err5 := handlers.NewReplayer(nil, nil, handlers.ReplayConfig{Limit: -1})
	for i, err := range []error{err1, err2, err3, err4, err5} {
		if !errors.Is(err, handlers.ErrInvalidConfig) {
			t.Errorf("%d: %v", i+1, err)
		}
	}
}
