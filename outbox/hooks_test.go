package outbox

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

// heard counts what hooks were told.
type heard struct {
	mu                                                                   sync.Mutex
	published, handled, retried, givenUp, parked, won, lost, rounds, odd int
}

func (h *heard) hooks(name string) Hooks {
	note := func(n *int, by int, of string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		*n += by
		if of != name {
			h.odd++
		}
	}
	return Hooks{
		Published: func(i PublishedInfo) { note(&h.published, i.Events, i.Name) },
		Handled:   func(i HandledInfo) { note(&h.handled, i.Events, i.Name) },
		Retried:   func(i FailureInfo) { note(&h.retried, 1, i.Name); panic("a hook's own trouble") },
		GivenUp:   func(i FailureInfo) { note(&h.givenUp, 1, i.Name) },
		Parked:    func(i ParkedInfo) { note(&h.parked, i.Retrying+i.Waiting+i.GivenUp, i.Name) },
		LeaseWon:  func(i LeaseInfo) { note(&h.won, 1, i.Name) },
		LeaseLost: func(i LeaseInfo) { note(&h.lost, 1, i.Name) },
		RoundDone: func(i RoundInfo) { note(&h.rounds, 1, i.Name) },
	}
}

func (h *heard) expect(t *testing.T, what string, ok func() bool) {
	t.Helper()
	eventually(t, func() bool { h.mu.Lock(); defer h.mu.Unlock(); return ok() && h.odd == 0 }, what)
}

// What happens is told to the hooks, once, and one that panics changes nothing.
func TestHooks(t *testing.T) {
	t.Parallel()
	t.Run("of a relay", func(t *testing.T) {
		t.Parallel()
		f := setUp(t, testkit.PG15)
		s := newSink()
		s.setRule(func(m *Message, _ int) Result {
			if m.Key == "bad" {
				return Result{Passing, errRefused}
			}
			return Result{Status: Done}
		})
		var h heard
		cfg := f.config()
		cfg.Hooks, cfg.Retry.MaxAttempts = h.hooks(cfg.Name), 3
		f.backlog(5, "bad", "good")
		stop := f.start(s, cfg)
		h.expect(t, "all is told", func() bool {
			return h.published == 5 && h.retried == 2 && h.givenUp == 1 && h.parked == 5 && h.won == 1 && h.rounds > 0 && h.handled == 0
		})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		h.expect(t, "the end is told", func() bool { return h.lost == 1 })
	})
	t.Run("of a durable handler", func(t *testing.T) {
		t.Parallel()
		f := setUp(t, testkit.PG15)
		var h heard
		cfg := f.durableConfig("book")
		cfg.Hooks, cfg.Retry.MaxAttempts = h.hooks("book"), 3
		f.backlog(5, "bad", "good")
		stop := f.durable(func(_ context.Context, _ *Tx, m *Message) error {
			if m.Key == "bad" {
				return errRefused
			}
			return nil
		}, cfg)
		h.expect(t, "all is told", func() bool {
			return h.handled == 5 && h.retried == 2 && h.givenUp == 1 && h.parked == 5 && h.won == 1 && h.rounds > 0 && h.published == 0
		})
		stop()
		h.expect(t, "the end is told", func() bool { return h.lost == 1 })
	})
}

// The window of a relay whose broker is away is what waits for it.
func TestRelaysWindowIsTold(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	var up atomic.Bool
	s.setRule(func(*Message, int) Result {
		if !up.Load() {
			return Result{Passing, ErrUnavailable}
		}
		return Result{Status: Done}
	})
	relay, err := NewRelay(f.as(testkit.Relay), s, f.config())
	if err != nil {
		t.Fatal(err)
	}
	if n, bytes := relay.Window(); n != 0 || bytes != 0 {
		t.Errorf("before Run: %d events, %d bytes", n, bytes)
	}
	f.backlog(5, "a", "b")
	f.run("relay", relay.Run)
	eventually(t, func() bool { n, bytes := relay.Window(); return n == 10 && bytes > 0 }, "all of it waits")
	up.Store(true)
	eventually(t, func() bool { n, bytes := relay.Window(); return s.distinct() == 10 && n == 0 && bytes == 0 }, "nothing waits")
}
