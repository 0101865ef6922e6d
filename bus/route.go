package bus

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// routes are the handlers of a bus. A map is never changed once it is published
// through EventBus.routes, so that readers need no lock.
type routes map[wireName]route

// route is the plain side of the handlers of one wire name.
type route interface {
	goType() reflect.Type
	afterCommitNames() []string
	// deliver makes what the handlers will be called with, out of an envelope and the
	// payload it was made of: nil if there is none, and the data has to be decoded.
	deliver(p events.Payload, e events.DomainEvent) (delivery, error)
}

// delivery is one event on its way to the handlers of its route, as they were
// when it was published.
type delivery interface {
	envelope() *events.DomainEvent
	inTxNames() []string
	afterCommitNames() []string
	callInTx(ctx context.Context, i int, tx pgx.Tx) error
	callAfterCommit(ctx context.Context, i int) error
}

// typedRoute is the typed side. It is never changed once it is in a routes map.
// Names stand beside the functions, so that the plain side reads them as they are.
type typedRoute[T events.Payload] struct {
	inTx        []func(context.Context, pgx.Tx, events.Event[T]) error
	inTxName    []string
	afterCommit []func(context.Context, events.Event[T]) error
	afterName   []string
}

func (r *typedRoute[T]) goType() reflect.Type       { return reflect.TypeFor[T]() }
func (r *typedRoute[T]) afterCommitNames() []string { return r.afterName }

func (r *typedRoute[T]) deliver(p events.Payload, e events.DomainEvent) (delivery, error) {
	switch data := any(p).(type) {
	case T:
		return &typedDelivery[T]{r, events.Event[T]{DomainEvent: e, Data: data}}, nil
	case *T: // not nil: events.New has called its methods
		return &typedDelivery[T]{r, events.Event[T]{DomainEvent: e, Data: *data}}, nil
	case nil: // an envelope built by hand
		event, err := events.Typed[T](e)
		if err != nil {
			return nil, fmt.Errorf("publish %s to its handlers in this process: %w", e.EventType, err)
		}
		return &typedDelivery[T]{r, event}, nil
	}
	return nil, &WiringError{GoType: goName(reflect.TypeOf(p)), Err: fmt.Errorf(
		"handlers of %s are subscribed with the Go type %s, and two Go types may not share a wire name and version: publish %[2]s, or give this type its own EventType or SchemaVersion",
		wireName{e.EventType, e.SchemaVersion}, goName(r.goType()))}
}

type typedDelivery[T events.Payload] struct {
	route *typedRoute[T]
	event events.Event[T]
}

func (d *typedDelivery[T]) envelope() *events.DomainEvent { return &d.event.DomainEvent }
func (d *typedDelivery[T]) inTxNames() []string           { return d.route.inTxName }
func (d *typedDelivery[T]) afterCommitNames() []string    { return d.route.afterName }

func (d *typedDelivery[T]) callInTx(ctx context.Context, i int, tx pgx.Tx) error {
	return d.route.inTx[i](ctx, tx, d.event)
}

func (d *typedDelivery[T]) callAfterCommit(ctx context.Context, i int) error {
	return d.route.afterCommit[i](ctx, d.event)
}

// addHandler puts a changed copy of T's route into a changed copy of the routes.
// Handlers are checked first; nothing is changed when one is refused.
func addHandler[T events.Payload](b *EventBus, name wireName, add func(*typedRoute[T])) error {
	b.subscribing.Lock()
	defer b.subscribing.Unlock()
	old := *b.routes.Load()
	next := &typedRoute[T]{}
	if existing, ok := old[name]; ok {
		same, ok := existing.(*typedRoute[T])
		if !ok {
			return fmt.Errorf("%s is already the Go type %s here, and two Go types may not share a wire name and version: subscribe with %[2]s, or give this type its own EventType or SchemaVersion",
				name, goName(existing.goType()))
		}
		// Clipped, so that appending never writes into an array that a reader holds.
		next.inTx, next.inTxName = slices.Clip(same.inTx), slices.Clip(same.inTxName)
		next.afterCommit, next.afterName = slices.Clip(same.afterCommit), slices.Clip(same.afterName)
	}
	add(next)
	changed := maps.Clone(old)
	changed[name] = next
	b.routes.Store(&changed)
	return nil
}

// goName is a Go type's name as errors show it: with its package's path where it
// has one, since the last element alone may fit two types.
func goName(t reflect.Type) string {
	if t.PkgPath() != "" && t.Name() != "" {
		return t.PkgPath() + "." + t.Name()
	}
	return t.String()
}

// funcName is how errors and logs call a handler: package.Function.
func funcName(f any) string {
	v := reflect.ValueOf(f)
	if v.IsNil() {
		return "nil"
	}
	name := "func"
	if fn := runtime.FuncForPC(v.Pointer()); fn != nil {
		name = fn.Name()
	}
	name = name[strings.LastIndexByte(name, '/')+1:]
	return strings.TrimSuffix(name, "-fm") // the compiler's mark of a method value
}
