package handlers_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

func TestStopLetsRunningHandlersFinish(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router()
	inside, goOn := make(chan struct{}), make(chan struct{})
	handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
		close(inside)
		<-goOn
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return r.book("stock.reserve")(ctx, tx, e)
	})
	r.broker.parallel = 1
	id := r.publish(order(1))
	r.publish(order(2)) // never begun
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- router.Run(ctx) }()
	<-inside
	cancel()
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r.state("stock.reserve", id) != "handled" || r.effectsOf("stock.reserve") != 1 || r.broker.acked("order") != 1 {
		t.Error("the running handler was not let finish")
	}
	if len(r.broker.waiting("order")) != 1 {
		t.Error("the other message is lost")
	}
}

func TestStopNeitherPoisonsNorLoses(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]func(ctx context.Context, tx pgx.Tx) error{
		"returns its context's error": func(ctx context.Context, _ pgx.Tx) error { <-ctx.Done(); return ctx.Err() },
		"returns another error":       func(ctx context.Context, _ pgx.Tx) error { <-ctx.Done(); return errors.New("half done") },
		"panics":                      func(ctx context.Context, _ pgx.Tx) error { <-ctx.Done(); panic("half done") },
		"is in a statement": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "SELECT pg_sleep(60)")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			router := r.router(func(c *handlers.Config) {
				c.CloseTimeout = 10 * time.Millisecond
				c.Retry.MaxAttempts = 1
			})
			inside := make(chan struct{})
			handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
				if err := r.book("stock.reserve")(ctx, tx, e); err != nil {
					return err
				}
				close(inside)
				return handler(ctx, tx)
			})
			id := r.publish(order(1))
			stop := r.run(router)
			<-inside
			stop()
			r.await("stock.reserve", id, handlers.OutcomeInterrupted)
			if len(r.broker.waiting("order.poison")) != 0 || r.state("stock.reserve", id) != "" || r.effectsOf("stock.reserve") != 0 {
				t.Error("it is settled")
			}
			if len(r.broker.waiting("order")) != 1 {
				t.Error("it is lost")
			}

			next := r.router() // the next process
			handlers.HandleTx(next, "stock.reserve", r.book("stock.reserve"))
			r.run(next)
			r.await("stock.reserve", id, handlers.OutcomeHandled)
			if n := r.effectsOf("stock.reserve"); n != 1 {
				t.Errorf("%d effects", n)
			}
		})
	}
}

func TestStopEndsWaitsForRetries(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router(func(c *handlers.Config) {
		c.Retry = handlers.RetryConfig{Initial: 20 * time.Second, MaxInterval: time.Minute, MaxElapsed: time.Hour}
	})
	var calls atomic.Int32
	handlers.Handle(router, "mail.receipt", func(context.Context, events.Event[placed]) error {
		calls.Add(1)
		return errors.New("not yet")
	})
	id := r.publish(order(1))
	stop := r.run(router)
	testkit.Eventually(t, soon, func() bool { return router.Stats().Retried == 1 }, "it waits for its second attempt")
	start := time.Now()
	stop()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the stop took %s", took)
	}
	r.await("mail.receipt", id, handlers.OutcomeInterrupted)
	if len(r.broker.waiting("order")) != 1 || len(r.broker.waiting("order.poison")) != 0 {
		t.Error("it is lost or poisoned")
	}
}

// A subscriber takes its message back, as Kafka does when it rebalances.
func TestRevokedMessageIsGivenBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx, revoke := context.WithCancel(context.Background())
	router, err := handlers.NewRouter(endable{r.broker, ctx}, r.config())
	if err != nil {
		t.Fatal(err)
	}
	inside := make(chan struct{})
	handlers.Handle(router, "mail.receipt", func(ctx context.Context, _ events.Event[placed]) error {
		close(inside)
		<-ctx.Done()
		return handlers.Permanent(ctx.Err())
	})
	id := r.publish(order(1))
	done := make(chan error, 1)
	go func() { done <- router.Run(t.Context()) }()
	<-inside
	revoke()
	if err := <-done; !errors.Is(err, handlers.ErrSubscriptionEnded) {
		t.Error(err)
	}
	r.await("mail.receipt", id, handlers.OutcomeInterrupted)
	if len(r.broker.waiting("order")) != 1 || len(r.broker.waiting("order.poison")) != 0 {
		t.Error("it is lost or poisoned")
	}
}

func TestHandlersThatIgnoreTheirContextAreNamed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	router := r.router(func(c *handlers.Config) { c.CloseTimeout = 10 * time.Millisecond })
	inside, goOn := make(chan struct{}), make(chan struct{})
	handlers.Handle(router, "stuck", func(context.Context, events.Event[placed]) error {
		close(inside)
		<-goOn
		return nil
	})
	id := r.publish(order(1))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- router.Run(ctx) }()
	<-inside
	cancel()
	var stuck *handlers.CloseTimeoutError
	if err := <-done; !errors.As(err, &stuck) || len(stuck.Handlers) != 1 || !strings.Contains(err.Error(), `"stuck"`) {
		t.Errorf("got %v", err)
	}
	close(goOn)
	r.await("stuck", id, handlers.OutcomeHandled)
}

// looseSubscriber gives its messages contexts that never end, as
// watermill-redisstream does after a nack.
type looseSubscriber struct{ *broker }

func (l looseSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := l.broker.Subscribe(ctx, topic)
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		for msg := range in {
			msg.SetContext(context.Background())
			out <- msg
		}
	}()
	return out, err
}

func TestStopReachesHandlersWhoseContextIsLoose(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cfg := r.config()
	cfg.CloseTimeout = 10 * time.Millisecond
	router, err := handlers.NewRouter(looseSubscriber{r.broker}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	inside := make(chan struct{})
	handlers.Handle(router, "mail.receipt", func(ctx context.Context, _ events.Event[placed]) error {
		close(inside)
		<-ctx.Done()
		return ctx.Err()
	}, handlers.WithTimeout(handlers.NoTimeout))
	id := r.publish(order(1))
	stop := r.run(router)
	<-inside
	stop()
	r.await("mail.receipt", id, handlers.OutcomeInterrupted)
}

// slowSubscriber offers messages without a way to stop, as some do.
type slowSubscriber struct{ *broker }

func (s slowSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	in, err := s.broker.Subscribe(context.WithoutCancel(ctx), topic)
	out := make(chan *message.Message)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			select {
			case msg := <-in:
				out <- msg // whatever ctx says
			case <-ctx.Done():
			}
		}
	}()
	return out, err
}

func TestStopFreesASubscriberThatMustDeliver(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.broker.parallel = 2
	router, err := handlers.NewRouter(slowSubscriber{r.broker}, r.config())
	if err != nil {
		t.Fatal(err)
	}
	handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
	for i := range 50 {
		r.publish(order(i))
	}
	stop := r.run(router)
	testkit.Eventually(t, soon, func() bool { return router.Stats().Handled > 0 }, "it runs")
	stop()
}

// Not parallel: goroutines of other tests would count.
func TestRunLeavesNoGoroutineBehind(t *testing.T) {
	r := newRig(t)
	r.publish(order(0))
	before := goleak.IgnoreCurrent()
	for i := range 10 {
		router := r.router()
		handlers.HandleTx(router, "stock.reserve", r.book("stock.reserve"))
		handlers.Handle(router, "mail.paid", func(context.Context, events.Event[paid]) error { return nil })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- router.Run(ctx) }()
		if i%2 == 0 { // stop it at work, or while it starts
			r.publish(order(i))
			testkit.Eventually(t, soon, func() bool { return router.Stats().Handled > 0 }, "it runs")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	goleak.VerifyNone(t, before)
}
