package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/wirename"
)

// LocalConfig configures a Local. The zero value is usable.
type LocalConfig struct {
	// Middlewares wrap every handler, the first outermost. None by default; with any,
	// a Dispatch allocates.
	Middlewares []Middleware
}

// Local is a bus without a database: it hands typed events to handlers in this
// process, and keeps nothing. See [Dispatch]. It holds no goroutine, so that there
// is nothing to close. It is safe for use by several goroutines.
type Local struct {
	middlewares []Middleware
	subscribed  atomic.Pointer[localTable]
	subscribing sync.Mutex // held by whoever replaces the table, never while a handler runs
}

// localTable is never changed once it is published, like a table.
type localTable struct {
	all    []*Subscription
	byType map[reflect.Type]any // the *localRoute[T] of T
	few    []any                // the same, as long as comparing them all beats the map
}

const few = 8

type localRoute[T events.Payload] struct {
	handlers []localHandler[T]
}

type localHandler[T events.Payload] struct {
	name string
	call func(ctx context.Context, e events.Event[T]) error
}

// NewLocal makes a bus without a database. All faults of the config are reported
// together, wrapping ErrInvalidConfig.
func NewLocal(cfg LocalConfig) (*Local, error) {
	if faults := faultsOfMiddlewares(cfg.Middlewares); len(faults) > 0 {
		return nil, fmt.Errorf("bus.NewLocal: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	l := &Local{middlewares: slices.Clone(cfg.Middlewares)}
	l.subscribed.Store(newLocalTable(nil))
	return l, nil
}

func newLocalTable(all []*Subscription) *localTable {
	t := &localTable{all: all, byType: map[reflect.Type]any{}}
	for _, s := range all {
		t.byType[s.goType] = s.extend(t.byType[s.goType])
	}
	if len(t.byType) <= few {
		t.few = slices.Collect(maps.Values(t.byType))
	}
	return t
}

// Subscribe has h called for every T that is dispatched on l. What is said of
// [SubscribeInTx] about T, by value, order, panics at wiring, goroutines and the
// Subscription holds here too.
func Subscribe[T events.Payload](l *Local, h func(ctx context.Context, e events.Event[T]) error) *Subscription {
	goType := reflect.TypeFor[T]()
	name, err := wirename.Check(goType)
	handler := localHandler[T]{name: funcName(h), call: h}
	s := &Subscription{
		local:  l,
		info:   SubscriptionInfo{Kind: KindLocal, EventType: name.EventType, SchemaVersion: name.Version, GoType: goName(goType), Handler: handler.name},
		goType: goType,
	}
	faults := []error{err}
	if h == nil {
		faults = append(faults, errors.New("the handler is nil: pass a function"))
	}
	if l == nil || l.subscribed.Load() == nil {
		faults = append(faults, errNoLocal)
	} else if len(l.middlewares) > 0 {
		s.call, err = wrap(l.middlewares, func(ctx context.Context, d *Delivery) error {
			e, err := typed[T](d)
			if err != nil {
				return err
			}
			return h(ctx, *e)
		})
		faults = append(faults, err)
		handler.call = func(ctx context.Context, e events.Event[T]) error {
			return s.call(ctx, &Delivery{Kind: KindLocal, Handler: handler.name, Event: &e.DomainEvent, data: &e})
		}
	}
	s.extend = func(route any) any {
		r, _ := route.(*localRoute[T])
		if r == nil {
			r = &localRoute[T]{}
		}
		r.handlers = append(r.handlers, handler)
		return r
	}
	if err := errors.Join(faults...); err != nil {
		panic(&WiringError{Handler: handler.name, GoType: goName(goType), Err: err})
	}
	if err := l.add(s); err != nil {
		panic(&WiringError{Handler: handler.name, GoType: goName(goType), Err: err})
	}
	return s
}

func (l *Local) add(s *Subscription) error {
	l.subscribing.Lock()
	defer l.subscribing.Unlock()
	all := l.subscribed.Load().all
	if err := checkSameType(all, s); err != nil {
		return err
	}
	l.subscribed.Store(newLocalTable(append(slices.Clip(all), s)))
	return nil
}

func (l *Local) remove(s *Subscription) {
	l.subscribing.Lock()
	defer l.subscribing.Unlock()
	if all, ok := without(l.subscribed.Load().all, s); ok {
		l.subscribed.Store(newLocalTable(all))
	}
}

// Subscriptions lists what is subscribed at this moment, in the order of
// subscription.
func (l *Local) Subscriptions() []SubscriptionInfo {
	if l == nil || l.subscribed.Load() == nil {
		return nil
	}
	return infosOf(l.subscribed.Load().all)
}

var (
	errNoLocal         = errors.New("the bus is nil or empty: make one with bus.NewLocal")
	errDispatchContext = errors.New("dispatch: the ctx is nil: pass the one of the request, or context.Background()")
)

// Dispatch hands event to the handlers of T that [Subscribe] has put on l, one
// after the other in the order of subscription, in the caller's goroutine, and
// returns when all have returned. All are called; their errors, and panics as
// errors, are joined, each as a *[HandlerError].
//
// The envelope that they get has a fresh id, its time to the millisecond, what T
// says of itself, and the correlation id of ctx, if there is one. There is nothing
// else in it: the data is not encoded, and nothing is checked that only matters to
// what is stored or sent, so that an event without an aggregate id passes. Handlers
// get ctx as it is; one that wants its own events to name this one as their cause
// publishes under events.ContextHandling(ctx, e.DomainEvent).
//
// Only handlers of Local are called, and of T itself: in-tx and after-commit
// handlers, handlers of patterns, and options (events.With, events.Raw) need an
// [EventBus]. Refused, with a *[WiringError] before any handler is called, is a T
// that is a pointer or an interface, of which there can be no handlers; an event
// that nobody handles is no error. Handlers that dispatch in a circle are not
// stopped. If one ends the goroutine, those after it are not called. A panic of
// the event's own methods is the caller's.
//
// Without middlewares it allocates nothing.
func Dispatch[T events.Payload](ctx context.Context, l *Local, event T) error {
	if ctx == nil {
		return errDispatchContext
	}
	var t *localTable
	if l != nil {
		t = l.subscribed.Load()
	}
	if t == nil {
		return fmt.Errorf("dispatch: %w", errNoLocal)
	}
	r := localRouteOf[T](t)
	if r == nil {
		return unhandled(reflect.TypeFor[T]())
	}
	id := events.NewID()
	var faults []error
	for called := 0; called < len(r.handlers); {
		called = callLocal(ctx, r.handlers, called, id, event, &faults)
	}
	if faults == nil {
		return nil
	}
	return errors.Join(faults...)
}

func localRouteOf[T events.Payload](t *localTable) *localRoute[T] {
	for _, r := range t.few {
		if r, ok := r.(*localRoute[T]); ok {
			return r
		}
	}
	if t.few != nil {
		return nil
	}
	r, _ := t.byType[reflect.TypeFor[T]()].(*localRoute[T])
	return r
}

// callLocal calls the handlers from the given one on, until all are called or one
// has panicked, and says how many are. One defer serves them all. The envelope is
// made here so that it is a variable of this function, which is copied once for
// each handler and not twice.
func callLocal[T events.Payload](ctx context.Context, handlers []localHandler[T], from int, id uuid.UUID, event T, faults *[]error) (called int) {
	var e events.Event[T] // a literal would be built elsewhere and copied
	e.Data = event
	e.EventID, e.Timestamp, e.CorrelationID = id, timeOf(id), events.Correlation(ctx)
	e.EventType, e.SchemaVersion, e.AggregateID = event.EventType(), event.SchemaVersion(), event.AggregateID()
	called = from
	defer func() {
		if called == len(handlers) {
			return
		}
		if v := recover(); v != nil { // else it ends the goroutine, which cannot be held up
			h := handlers[called].name
			*faults = append(*faults, localError(h, id, e.EventType, &PanicError{Value: v, Stack: debug.Stack(), Handler: h, EventID: id}))
			called++
		}
	}()
	for ; called < len(handlers); called++ {
		if err := handlers[called].call(ctx, e); err != nil {
			*faults = append(*faults, localError(handlers[called].name, id, e.EventType, err))
		}
	}
	return called
}

func localError(handler string, id uuid.UUID, eventType string, err error) error {
	return &HandlerError{Kind: KindLocal, Handler: handler, EventType: eventType, EventID: id, Err: err}
}

// unhandled tells a type that nobody handles from one that nobody can.
func unhandled(t reflect.Type) error {
	switch t.Kind() {
	case reflect.Pointer:
		return &WiringError{GoType: t.String(), Err: errors.New("it is a pointer, and handlers are of values: dispatch the value")}
	case reflect.Interface:
		return &WiringError{GoType: t.String(), Err: errors.New("it is an interface, and handlers are found by the Go type: dispatch a value of that type")}
	}
	return nil
}

// timeOf is the time in a UUIDv7: a second look at the clock would cost as much as
// all the rest.
func timeOf(id uuid.UUID) time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}
