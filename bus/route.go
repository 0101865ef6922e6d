package bus

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/wirename"
)

// table is what is subscribed to a bus. It is never changed once it is published
// through EventBus.subscribed, so that readers need no lock.
type table struct {
	all      []*Subscription // in the order of subscription
	named    map[wirename.Name]*route
	patterns []*Subscription // those of all that have one
}

// route is the handlers of one wire name, typed or not, each kind in the order of
// subscription.
type route struct {
	open              opener // nil if no handler is typed
	inTx, afterCommit []*Subscription
}

func newTable(all []*Subscription) *table {
	t := &table{all: all, named: map[wirename.Name]*route{}}
	for _, s := range all {
		if s.pattern != nil {
			t.patterns = append(t.patterns, s)
		} else if t.named[s.name()] == nil {
			t.named[s.name()] = &route{open: s.open}
		}
	}
	for _, s := range all {
		if s.pattern == nil {
			t.named[s.name()].add(s)
			continue
		}
		for name, r := range t.named {
			if s.pattern.Matches(name.EventType) {
				r.add(s)
			}
		}
	}
	return t
}

// route gives the handlers of a wire name, or nil if nobody handles it.
func (t *table) route(name wirename.Name) *route {
	if r := t.named[name]; r != nil {
		return r
	}
	var r *route
	for _, s := range t.patterns {
		if s.pattern.Matches(name.EventType) {
			if r == nil {
				r = &route{}
			}
			r.add(s)
		}
	}
	return r
}

func (r *route) add(s *Subscription) {
	switch s.info.Kind {
	case KindInTx:
		r.inTx = append(r.inTx, s)
	case KindAfterCommit:
		r.afterCommit = append(r.afterCommit, s)
	}
}

func (s *Subscription) name() wirename.Name {
	return wirename.Name{EventType: s.info.EventType, Version: s.info.SchemaVersion}
}

// add subscribes s, whose handler is call, unless its wire name has another Go type
// already. Nothing is changed when it is refused.
func (b *EventBus) add(s *Subscription, call Next) (err error) {
	if s.call, err = wrap(b.middlewares, call); err != nil { // before the lock: they are the user's
		return err
	}
	b.subscribing.Lock()
	defer b.subscribing.Unlock()
	old := b.subscribed.Load().all
	if err := errors.Join(checkSameType(old, s), b.checkDurable(old, s)); err != nil {
		return err
	}
	b.subscribed.Store(newTable(append(slices.Clip(old), s)))
	return nil
}

func (b *EventBus) remove(s *Subscription) {
	b.subscribing.Lock()
	defer b.subscribing.Unlock()
	if all, ok := without(b.subscribed.Load().all, s); ok {
		b.subscribed.Store(newTable(all))
	}
}

// checkSameType refuses s if its wire name stands for another Go type among all.
func checkSameType(all []*Subscription, s *Subscription) error {
	for _, other := range all {
		if s.pattern == nil && other.pattern == nil && other.name() == s.name() && other.goType != s.goType {
			return fmt.Errorf("%s is already the Go type %s here, and two Go types may not share a wire name and version: subscribe with %[2]s, or give this type its own EventType or SchemaVersion",
				s.name(), other.info.GoType)
		}
	}
	return nil
}

// without is a copy of all that lacks s.
func without(all []*Subscription, s *Subscription) (left []*Subscription, ok bool) {
	i := slices.Index(all, s)
	if i < 0 {
		return all, false
	}
	return slices.Delete(slices.Clone(all), i, i+1), true
}

// occurrence is one event on its way to its handlers, as they were when it was
// published.
type occurrence struct {
	envelope *events.DomainEvent
	data     any // the *events.Event[T] that envelope is part of; nil if no handler is typed
	route    *route
}

func newOccurrence(r *route, p events.Payload, e events.DomainEvent) (*occurrence, error) {
	if r.open == nil {
		return &occurrence{envelope: &e, route: r}, nil
	}
	data, envelope, err := r.open(p, e)
	return &occurrence{envelope: envelope, data: data, route: r}, err
}

func openTyped[T events.Payload](p events.Payload, e events.DomainEvent) (any, *events.DomainEvent, error) {
	event := &events.Event[T]{DomainEvent: e}
	switch data := any(p).(type) {
	case T:
		event.Data = data
	case *T: // not nil: events.New has called its methods
		event.Data = *data
	case nil: // an envelope built by hand
		var err error
		if *event, err = events.Typed[T](e); err != nil {
			return nil, nil, fmt.Errorf("publish %s to its handlers in this process: %w", e.EventType, err)
		}
	default:
		return nil, nil, &WiringError{GoType: goName(reflect.TypeOf(p)), Err: fmt.Errorf(
			"handlers of %s are subscribed with the Go type %s, and two Go types may not share a wire name and version: publish %[2]s, or give this type its own EventType or SchemaVersion",
			wirename.Name{EventType: e.EventType, Version: e.SchemaVersion}, goName(reflect.TypeFor[T]()))}
	}
	return event, &event.DomainEvent, nil
}

// to is o on its way to one handler; tx is nil after a commit.
func (o *occurrence) to(s *Subscription, tx pgx.Tx) *Delivery {
	return &Delivery{Kind: s.info.Kind, Handler: s.info.Handler, Event: o.envelope, data: o.data, tx: tx}
}

func handlerNames(of []*Subscription) []string {
	names := make([]string, len(of))
	for i, s := range of {
		names[i] = s.info.Handler
	}
	return names
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
