package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/google/uuid"
)

// ErrForgotten is wrapped by a *[ForgottenError].
var ErrForgotten = errors.New("a followed transaction was dropped without Commit, Rollback or Committed")

// ForgottenError says which after-commit handlers of a bus were not called,
// because nobody has told how their transaction ended. Whether it was committed
// is not known; the log has the event exactly if it was.
type ForgottenError struct {
	EventType string    // of the first event
	EventID   uuid.UUID // of the first event
	Handlers  []string  // one for each call that was due, in order
}

func (e *ForgottenError) Error() string {
	return fmt.Sprintf("after-commit handlers of %s %s were not called (%s): %v: end the Tx of bus.Follow by its Commit or Rollback, or call Committed",
		e.EventType, e.EventID, strings.Join(e.Handlers, ", "), ErrForgotten)
}

// Unwrap gives ErrForgotten.
func (e *ForgottenError) Unwrap() error { return ErrForgotten }

// reminder is what outlives a followed transaction that nobody ends: the calls
// that are due. Nothing in it leads back to the Tx, as the contexts of the
// announcements may do; it would never be found dropped otherwise.
type reminder struct {
	mu  sync.Mutex // savepoints may outlive the Tx
	due []dueCall
}

type dueCall struct {
	handler   *Subscription
	eventType string
	eventID   uuid.UUID
}

func (r *reminder) note(a announcement) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.due = append(r.due, dueCall{a.handler, a.event.envelope.EventType, a.event.envelope.EventID})
}

// rewind forgets all but the first n.
func (r *reminder) rewind(n int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.due = r.due[:min(n, len(r.due))]
}

// forgotten runs once the Tx is garbage.
func (r *reminder) forgotten() {
	r.mu.Lock()
	due := r.due
	r.mu.Unlock()
	var buses []*EventBus
	byBus := map[*EventBus]*ForgottenError{}
	for _, c := range due {
		b := c.handler.bus
		if byBus[b] == nil {
			buses = append(buses, b)
			byBus[b] = &ForgottenError{EventType: c.eventType, EventID: c.eventID}
		}
		byBus[b].Handlers = append(byBus[b].Handlers, c.handler.info.Handler)
	}
	for _, b := range buses {
		b.tellForgotten(byBus[b])
	}
}

// tellForgotten calls the hook, whose panic would end the process here.
func (b *EventBus) tellForgotten(err *ForgottenError) {
	defer func() {
		if v := recover(); v != nil {
			b.logger.LogAttrs(context.Background(), slog.LevelError, "Config.OnForgotten panicked",
				slog.Any("panic", v), slog.String("stack", string(debug.Stack())), slog.Any("error", err))
		}
	}()
	b.onForgotten(err)
}

func (b *EventBus) logForgotten(err *ForgottenError) {
	b.logger.LogAttrs(context.Background(), slog.LevelWarn, "after-commit handlers were not called: a followed transaction was dropped",
		slog.String("event_type", err.EventType), slog.String("event_id", err.EventID.String()),
		slog.Any("handlers", err.Handlers), slog.Any("error", err))
}
