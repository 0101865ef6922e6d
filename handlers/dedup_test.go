package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

// shelf is a DedupStore in memory, whose claims run out by hand.
type shelf struct {
	mu     sync.Mutex
	tokens int
	held   map[string]string
	fails  func(method string) error
}

const handledMark = "done"

func newShelf() *shelf { return &shelf{held: map[string]string{}} }

// use runs f on the entry of an event in a handler, unless the method is to fail.
func (s *shelf) use(method, handler string, event uuid.UUID, f func(held string) (string, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		if err := s.fails(method); err != nil {
			return err
		}
	}
	k := handler + " " + event.String()
	held, err := f(s.held[k])
	s.held[k] = held
	return err
}

func (s *shelf) Claim(ctx context.Context, handler string, event uuid.UUID) (state handlers.ClaimState, token string, err error) {
	err = s.use("Claim", handler, event, func(held string) (string, error) {
		switch held {
		case "":
			s.tokens++
			state, token = handlers.ClaimFresh, strconv.Itoa(s.tokens)
			return token, ctx.Err()
		case handledMark:
			state = handlers.ClaimDone
		default:
			state = handlers.ClaimBusy
		}
		return held, ctx.Err()
	})
	return state, token, err
}

func (s *shelf) Complete(ctx context.Context, handler string, event uuid.UUID, token string) error {
	return s.use("Complete", handler, event, func(held string) (string, error) {
		if held != "" && held != handledMark && held != token {
			return held, handlers.ErrClaimLost
		}
		return handledMark, ctx.Err()
	})
}

func (s *shelf) Release(ctx context.Context, handler string, event uuid.UUID, token string) error {
	return s.use("Release", handler, event, func(held string) (string, error) {
		if held == token {
			held = ""
		}
		return held, ctx.Err()
	})
}

func (s *shelf) failWith(fails func(method string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = fails
}

func (s *shelf) put(handler string, event uuid.UUID, value string) {
	s.use("put", handler, event, func(string) (string, error) { return value, nil })
}

func (s *shelf) get(handler string, event uuid.UUID) (value string) {
	s.use("get", handler, event, func(held string) (string, error) { value = held; return held, nil })
	return value
}

// dedupBy runs a handler in a Watermill router of the user's own, with the
// middlewares around it, until the test ends.
func dedupBy(t *testing.T, b *broker, store handlers.DedupStore, handle message.HandlerFunc, inside ...message.HandlerMiddleware) {
	t.Helper()
	slow, err := handlers.SlowNack(handlers.SlowNackConfig{Initial: time.Millisecond, Max: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	poison, err := handlers.Poison(nil, handlers.PoisonConfig{Publisher: b})
	if err != nil {
		t.Fatal(err)
	}
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: soon}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	router.AddHandler("mail.receipt", "order", b, "out", b, handle).
		AddMiddleware(append([]message.HandlerMiddleware{slow, poison, survivePanics, handlers.DedupBy(store)}, inside...)...)
	ran := make(chan error, 1)
	go func() { ran <- router.Run(context.Background()) }()
	<-router.Running()
	t.Cleanup(func() {
		if err := errors.Join(router.Close(), <-ran); err != nil {
			t.Error(err)
		}
	})
}

// survivePanics stands outside of DedupBy, as a user's own middleware may.
func survivePanics(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (out []*message.Message, err error) {
		defer func() {
			if v := recover(); v != nil {
				out, err = nil, &handlers.PostponedError{Err: fmt.Errorf("panic: %v", v)}
			}
		}()
		return next(msg)
	}
}

func send(t *testing.T, b *broker, msgs ...*message.Message) {
	t.Helper()
	if err := b.Publish("order", msgs...); err != nil {
		t.Fatal(err)
	}
}

func newEvent() (*message.Message, uuid.UUID) {
	id := uuid.New()
	return message.NewMessage(id.String(), []byte("{}")), id
}

// However the first try ends without success, the event is free at once.
func TestDedupByTakesNoFailureForADuplicate(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func() error{
		"error":       func() error { return &handlers.PostponedError{Err: errors.New("not now")} },
		"interrupted": func() error { return &handlers.PostponedError{Err: handlers.ErrInterrupted} },
		"panic":       func() error { panic("at the disco") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, store := newBroker(1), newShelf()
			var calls atomic.Int32
			dedupBy(t, b, store, func(*message.Message) ([]*message.Message, error) {
				if calls.Add(1) == 1 {
					return nil, fail()
				}
				return nil, nil
			})
			msg, id := newEvent()
			send(t, b, msg, msg, msg)
			testkit.Eventually(t, soon, func() bool { return b.acked("order") == 3 }, "all are acked")
			if calls.Load() != 2 || b.nacked("order") != 1 || store.get("mail.receipt", id) != handledMark {
				t.Errorf("%d calls, %d nacks, store has %q; want 2, 1, done", calls.Load(), b.nacked("order"), store.get("mail.receipt", id))
			}
		})
	}
	t.Run("given up", func(t *testing.T) {
		t.Parallel()
		b, store := newBroker(1), newShelf()
		var calls atomic.Int32
		dedupBy(t, b, store, func(*message.Message) ([]*message.Message, error) {
			calls.Add(1)
			return nil, errors.New("a bug")
		}, mustRetry(t, quick))
		msg, id := newEvent()
		send(t, b, msg)
		testkit.Eventually(t, soon, func() bool { return b.acked("order") == 1 }, "it is acked")
		if calls.Load() != 3 || len(b.waiting("order.poison")) != 1 || store.get("mail.receipt", id) != "" {
			t.Errorf("%d calls, %d poisoned, store has %q; want 3, 1 and nothing, for the replay",
				calls.Load(), len(b.waiting("order.poison")), store.get("mail.receipt", id))
		}
	})
}

// Two copies at once: the second is given back, not acked, while the first is
// under way, and settled by how that ends. A claim of the dead holds until it
// runs out.
func TestDedupByPostponesWhatIsInProgress(t *testing.T) {
	t.Parallel()
	b, store := newBroker(2), newShelf()
	inside, goOn := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	dedupBy(t, b, store, func(*message.Message) ([]*message.Message, error) {
		if calls.Add(1) == 1 {
			close(inside)
			<-goOn
		}
		return nil, nil
	})
	msg, _ := newEvent()
	send(t, b, msg, msg)
	<-inside
	testkit.Eventually(t, soon, func() bool { return b.nacked("order") > 2 }, "the second is given back")
	if calls.Load() != 1 || b.acked("order") != 0 {
		t.Errorf("%d calls, %d acks beside the first", calls.Load(), b.acked("order"))
	}
	close(goOn)
	testkit.Eventually(t, soon, func() bool { return b.acked("order") == 2 }, "both are acked")
	if calls.Load() != 1 {
		t.Errorf("%d calls, want 1", calls.Load())
	}

	nacks := b.nacked("order")
	msg, id := newEvent()
	store.put("mail.receipt", id, "of one who died")
	store.put("another", id, handledMark)
	send(t, b, msg)
	testkit.Eventually(t, soon, func() bool { return b.nacked("order") > nacks+2 }, "it is given back")
	store.put("mail.receipt", id, "") // runs out
	testkit.Eventually(t, soon, func() bool { return b.acked("order") == 3 }, "it is acked")
	if calls.Load() != 2 || len(b.waiting("order.poison")) != 0 {
		t.Errorf("%d calls, want 2; %d poisoned", calls.Load(), len(b.waiting("order.poison")))
	}
}

// The store does not answer, or somebody has taken a claim that ran out, when
// the handler is done: its success is recorded at a redelivery, and what it
// returned is published then.
func TestDedupByRecordsLaterWithoutAnotherCall(t *testing.T) {
	t.Parallel()
	for name, obstacle := range map[string]func(*shelf, uuid.UUID) (remove func()){
		"no answer": func(s *shelf, _ uuid.UUID) func() {
			s.failWith(func(method string) error {
				if method == "Complete" || method == "Release" {
					return errors.New("down")
				}
				return nil
			})
			return func() { s.failWith(nil) }
		},
		"claim lost": func(s *shelf, id uuid.UUID) func() {
			s.put("mail.receipt", id, "of another")
			return func() { s.put("mail.receipt", id, "") } // he fails
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, store := newBroker(1), newShelf()
			msg, id := newEvent()
			var calls atomic.Int32
			removed := make(chan func(), 1)
			dedupBy(t, b, store, func(*message.Message) ([]*message.Message, error) {
				calls.Add(1)
				removed <- obstacle(store, id)
				return message.Messages{message.NewMessage("result", nil)}, nil
			})
			send(t, b, msg)
			remove := <-removed
			testkit.Eventually(t, soon, func() bool { return b.nacked("order") > 2 }, "it is given back")
			if b.acked("order") != 0 || len(b.waiting("out")) != 0 {
				t.Error("it is acked, or its result published, before its success is recorded")
			}
			remove()
			testkit.Eventually(t, soon, func() bool { return b.acked("order") == 1 }, "it is acked")
			if calls.Load() != 1 || store.get("mail.receipt", id) != handledMark || len(b.waiting("out")) != 1 {
				t.Errorf("%d calls, store has %q, %d results; want 1, done, 1", calls.Load(), store.get("mail.receipt", id), len(b.waiting("out")))
			}
		})
	}
}

func TestDedupByPostponesWithoutItsStore(t *testing.T) {
	t.Parallel()
	b, store := newBroker(1), newShelf()
	store.failWith(func(string) error { return errors.New("down") })
	var calls atomic.Int32
	dedupBy(t, b, store, func(*message.Message) ([]*message.Message, error) {
		calls.Add(1)
		return nil, nil
	})
	msg, _ := newEvent()
	send(t, b, msg)
	testkit.Eventually(t, soon, func() bool { return b.nacked("order") > 5 }, "it is given back")
	if calls.Load() != 0 || len(b.waiting("order.poison")) != 0 {
		t.Errorf("%d calls, %d poisoned while the store is away", calls.Load(), len(b.waiting("order.poison")))
	}
	store.failWith(nil)
	testkit.Eventually(t, soon, func() bool { return b.acked("order") == 1 }, "it is acked")
	if calls.Load() != 1 {
		t.Errorf("%d calls, want 1", calls.Load())
	}
}
