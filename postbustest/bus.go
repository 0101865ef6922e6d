package postbustest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// Bus stands for the bus in the tests of a domain that need no database: it has the
// one method that domain code depends on, and remembers what it is told. E is the
// domain's own event interface, or events.Payload for the signature of the real bus:
//
//	var told postbustest.Bus[order.Event]
//	orders := order.New(&told)
//
// It is a [Source]. The zero value accepts all that the real bus accepts. It is safe
// for use by several goroutines and must not be copied.
type Bus[E events.Payload] struct {
	mu       sync.Mutex
	payloads []E
	events   []events.DomainEvent
	err      error
}

var _ Source = (*Bus[events.Payload])(nil)

// Publish builds and encodes the envelopes as the real bus does, so that what that
// refuses (a nil pointer, an empty aggregate id, data that is too large) is refused
// here, too: all of a call or nothing is remembered. tx may be nil, and is not used;
// what is published in a transaction that rolls back stays.
func (b *Bus[E]) Publish(ctx context.Context, _ pgx.Tx, evs ...E) error {
	envelopes := make([]events.DomainEvent, 0, len(evs))
	var faults []error
	for _, p := range evs {
		e, err := envelope(ctx, p)
		if err != nil {
			faults = append(faults, fmt.Errorf("publish: %w", err))
			continue
		}
		envelopes = append(envelopes, e)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil && len(evs) > 0 {
		return b.err
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	b.payloads, b.events = append(b.payloads, evs...), append(b.events, envelopes...)
	return nil
}

// envelope is what would stand in the log.
func envelope(ctx context.Context, p events.Payload) (events.DomainEvent, error) {
	e, err := events.New(ctx, p)
	if err != nil {
		return e, err
	}
	document, err := e.Encode()
	if err != nil {
		return e, err
	}
	return e, e.CheckSize(len(document), events.MaxDocumentBytes)
}

// FailWith has every Publish from now on return err and remember nothing; nil ends it.
func (b *Bus[E]) FailWith(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

// Payloads are the events as they were published, in order: the very values, which
// the domain may have changed since. [RequirePublished] gives typed copies.
func (b *Bus[E]) Payloads() []E {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.payloads)
}

func (b *Bus[E]) published(testing.TB) []events.DomainEvent {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.events)
}

func (b *Bus[E]) place() string { return "published to the bus" }
