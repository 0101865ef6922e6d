package bus

import (
	"context"
	"errors"
	"reflect"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/typepattern"
	"github.com/postbus/postbus/internal/wirename"
)

// ErrWiring is wrapped by a *[WiringError].
var ErrWiring = errors.New("event handlers are wired wrongly")

// WiringError says why a handler cannot be subscribed, or why an event cannot be
// handed to the handlers of its name. Every fault that was found is in Err.
type WiringError struct {
	Handler string // package.Function of the handler, empty when the event is at fault
	GoType  string // the Go type of the event, empty for a pattern
	Pattern string // what an untyped handler was to be subscribed to
	Err     error
}

func (e *WiringError) Error() string {
	if e.Handler == "" {
		return "publish an event of type " + e.GoType + ": " + e.Err.Error()
	}
	if e.GoType == "" {
		return "subscribe " + e.Handler + " to the pattern " + strconv.Quote(e.Pattern) + ": " + e.Err.Error()
	}
	return "subscribe " + e.Handler + " to events of type " + e.GoType + ": " + e.Err.Error()
}

// Unwrap gives ErrWiring and the faults.
func (e *WiringError) Unwrap() []error { return []error{ErrWiring, e.Err} }

// SubscribeInTx has h called for every event of T's wire name and version that is
// published on b, inside the transaction it is published in and before Publish
// returns. What h writes through its tx is committed with the event or not at
// all. An error of h fails the Publish, and with it the transaction; a panic is
// such an error.
//
// h gets the event by value, however it was published; what its fields point to
// is shared with the publisher and the other handlers, and must not be changed.
// Handlers of one event run one after the other, in the order of subscription,
// typed and untyped ones alike.
// h may publish further events through its tx; their ctx must be the one h was
// given. A function subscribed twice is called twice.
//
// A handler that could never be called, or would be called with somebody else's
// events, is a mistake in the program: SubscribeInTx panics with a
// *[WiringError] that names all faults. T must be a Go type of its own with
// value methods and constant names, neither pointer nor interface, and the only
// one of its wire name and version on this bus.
//
// It may be called at any time, also while events are published, by any
// goroutine; events whose Publish has begun do not reach h. h is called until the
// Subscription is cancelled; whoever never does that need not keep it.
func SubscribeInTx[T events.Payload](b *EventBus, h func(ctx context.Context, tx pgx.Tx, e events.Event[T]) error) *Subscription {
	return subscribe[T](b, KindInTx, funcName(h), h == nil, func(ctx context.Context, d *Delivery) error {
		e, err := typed[T](d)
		if err != nil {
			return err
		}
		return h(ctx, d.tx, *e)
	})
}

// SubscribeAfterCommit has h called for every event of T's wire name and version
// that is published on b, once the transaction it was published in is known to be
// committed: never for a transaction or a savepoint that was rolled back, and not
// if the outcome of the commit is unknown. The transaction must be one of [InTx],
// or followed by [Follow].
//
// It is best effort: handlers live in memory, and a process that dies after the
// commit never calls them. InTx calls them one after the other in the order of
// publication, and returns when all have returned. Their errors and panics go to
// [Config].OnAfterCommitError; they change nothing for the caller of InTx, whose
// work is done. The ctx of h keeps the values of the ctx of Publish, but not its
// cancellation or its deadline; it has one of its own, [Config].AfterCommitTimeout.
// h may call InTx.
//
// What is said of [SubscribeInTx] about T, sharing, order, panics at wiring,
// goroutines and the Subscription holds here too.
func SubscribeAfterCommit[T events.Payload](b *EventBus, h func(ctx context.Context, e events.Event[T]) error) *Subscription {
	return subscribe[T](b, KindAfterCommit, funcName(h), h == nil, func(ctx context.Context, d *Delivery) error {
		e, err := typed[T](d)
		if err != nil {
			return err
		}
		return h(ctx, *e)
	})
}

func subscribe[T events.Payload](b *EventBus, kind Kind, handler string, isNil bool, call Next) *Subscription {
	faults := faultsOfCall(b, isNil)
	goType := reflect.TypeFor[T]()
	name, err := wirename.Check(goType)
	if err != nil {
		faults = append(faults, err)
	}
	s := &Subscription{
		bus:    b,
		info:   SubscriptionInfo{Kind: kind, EventType: name.EventType, SchemaVersion: name.Version, GoType: goName(goType), Handler: handler},
		goType: goType,
		open:   openTyped[T],
	}
	if len(faults) == 0 {
		if err := b.add(s, call); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		panic(&WiringError{Handler: handler, GoType: goName(goType), Err: errors.Join(faults...)})
	}
	return s
}

// SubscribeInTxTo has h called as [SubscribeInTx] does, for every event whose type
// matches the pattern, whatever its version and Go type: for auditors and
// projections that want all there is. The patterns are
//
//	"*"              every event
//	"order.*"        every event type that begins with "order.", at any depth
//	"order.placed"   that event type alone
//
// and nothing else is one: the last segment is a star or the whole has none. h
// gets the envelope with its data still encoded; events.Typed decodes it. Data and
// Metadata are shared, and must not be changed.
//
// Typed and untyped handlers of an event are called in one order, that of
// subscription. So a projection that is to see what typed handlers have written is
// subscribed after them. A pattern may match what h publishes itself: h then has
// to leave out its own events, or is stopped at [Config].MaxDepth.
func SubscribeInTxTo(b *EventBus, pattern string, h func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error) *Subscription {
	return subscribeTo(b, KindInTx, pattern, funcName(h), h == nil, func(ctx context.Context, d *Delivery) error {
		return h(ctx, d.tx, *d.Event)
	})
}

// SubscribeAfterCommitTo has h called as [SubscribeAfterCommit] does, for every
// event whose type matches the pattern. See [SubscribeInTxTo] for patterns.
func SubscribeAfterCommitTo(b *EventBus, pattern string, h func(ctx context.Context, e events.DomainEvent) error) *Subscription {
	return subscribeTo(b, KindAfterCommit, pattern, funcName(h), h == nil, func(ctx context.Context, d *Delivery) error {
		return h(ctx, *d.Event)
	})
}

func subscribeTo(b *EventBus, kind Kind, text, handler string, isNil bool, call Next) *Subscription {
	faults := faultsOfCall(b, isNil)
	p, err := typepattern.Parse(text)
	if err != nil {
		faults = append(faults, err)
	}
	s := &Subscription{
		bus:     b,
		info:    SubscriptionInfo{Kind: kind, EventType: text, Handler: handler},
		pattern: &p,
	}
	if len(faults) == 0 {
		if err := b.add(s, call); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		panic(&WiringError{Handler: handler, Pattern: clip(text), Err: errors.Join(faults...)})
	}
	return s
}

func faultsOfCall(b *EventBus, isNil bool) (faults []error) {
	if b == nil || b.log == nil {
		faults = append(faults, errors.New("the bus is nil or empty: make one with bus.New"))
	}
	if isNil {
		faults = append(faults, errors.New("the handler is nil: pass a function"))
	}
	return faults
}
