// Package wirename finds out what a Go type of events is called between programs, and
// what is wrong with it as the type of a handler, in this process or behind a broker.
package wirename

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/postbus/postbus/events"
)

// Name is what an event is called between programs, and the only thing that
// handlers are found by. The names of Go types play no part: they may change.
type Name struct {
	EventType string
	Version   int
}

func (n Name) String() string { return fmt.Sprintf("%s v%d", n.EventType, n.Version) }

// zeroName asks a zero value of t, an event type, for its wire name: the name of
// a type cannot depend on what a value holds. A pointer to it has all methods,
// whether t declares them on the value or on the pointer.
func zeroName(t reflect.Type) (name Name, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("EventType or SchemaVersion of its zero value panics (%v): let both return constants", v)
		}
	}()
	p := reflect.New(t).Interface().(events.Payload)
	return Name{p.EventType(), p.SchemaVersion()}, nil
}

// Check returns the wire name of the type of a handler's events, or all that is
// wrong with the type.
func Check(t reflect.Type) (Name, error) {
	switch t.Kind() {
	case reflect.Pointer:
		return Name{}, fmt.Errorf("it is a pointer: take events.Event[%s] and declare its methods on the value; events published by pointer reach the handler too", t.Elem())
	case reflect.Interface:
		return Name{}, errors.New("it is an interface, which has no wire name: add a handler for each Go type that implements it")
	}
	name, err := zeroName(t)
	if err != nil {
		return name, err
	}
	var faults []error
	if fault := FaultOfType(name.EventType); fault != "" {
		faults = append(faults, fmt.Errorf("EventType of its zero value %s", fault))
	}
	if name.Version < 1 || name.Version > events.MaxSchemaVersion {
		faults = append(faults, fmt.Errorf("SchemaVersion of its zero value is %d: return a constant, versions start at 1", name.Version))
	}
	if len(faults) == 0 {
		if err := CheckEmbedded(t, name); err != nil {
			faults = append(faults, err)
		}
	}
	return name, errors.Join(faults...)
}

// embedded is an event type inside a struct: Go promotes its methods, so that the
// outer struct passes for it without saying so.
type embedded struct {
	goType reflect.Type
	name   Name
	opaque bool // an interface, or its name needs a value: any name may come of it
}

// CheckEmbedded refuses a type that goes by the name of an event it embeds. A
// struct that embeds version 1 and declares SchemaVersion 2 itself is fine.
func CheckEmbedded(t reflect.Type, name Name) error {
	for _, e := range embeddedIn(t) {
		if e.opaque {
			return fmt.Errorf("it embeds %s, whose methods may stand in for its own: make that a named field and declare EventType, SchemaVersion and AggregateID on %s", e.goType, t)
		}
		if e.name == name {
			return fmt.Errorf("it embeds the event %s and goes by its name, %s: declare an EventType or a SchemaVersion of its own on %s, or make the embedded event a named field", e.goType, name, t)
		}
	}
	return nil
}

// embeddedByType remembers what findEmbedded has found: types do not change.
var embeddedByType sync.Map // reflect.Type -> []embedded

func embeddedIn(t reflect.Type) []embedded {
	if found, ok := embeddedByType.Load(t); ok {
		return found.([]embedded)
	}
	found := findEmbedded(t, map[reflect.Type]bool{t: true})
	embeddedByType.Store(t, found)
	return found
}

var payloadType = reflect.TypeFor[events.Payload]()

func findEmbedded(t reflect.Type, seen map[reflect.Type]bool) (found []embedded) {
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		field := t.Field(i)
		if !field.Anonymous {
			continue
		}
		inner := field.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if seen[inner] {
			continue
		}
		seen[inner] = true
		if inner.Kind() == reflect.Interface {
			if inner.Implements(payloadType) {
				found = append(found, embedded{goType: inner, opaque: true})
			}
			continue
		}
		if reflect.PointerTo(inner).Implements(payloadType) {
			name, err := zeroName(inner)
			found = append(found, embedded{goType: inner, name: name, opaque: err != nil})
		}
		found = append(found, findEmbedded(inner, seen)...)
	}
	return found
}

// FaultOfType is what is wrong with an event type by the rules of package events, or "".
func FaultOfType(eventType string) string {
	probe := SoundEvent()
	probe.EventType = eventType
	var invalid *events.InvalidEventError
	if errors.As(probe.Validate(), &invalid) {
		return invalid.Reason
	}
	return ""
}

// SoundEvent is an event with nothing wrong in it, to try one part with.
func SoundEvent() events.DomainEvent {
	return events.DomainEvent{
		EventID: events.NewID(), EventType: "sound", SchemaVersion: 1,
		AggregateID: "-", Timestamp: time.Unix(1, 0), Data: []byte("{}"),
	}
}
