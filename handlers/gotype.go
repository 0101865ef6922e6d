package handlers

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/postbus/postbus/events"
)

var payloadType = reflect.TypeFor[events.Payload]()

// zeroName asks a zero value of t for its wire name, or returns what is wrong
// with t as the event of a handler. Names of Go types play no part on the wire.
func zeroName(t reflect.Type) (eventType string, version int, err error) {
	switch t.Kind() {
	case reflect.Pointer:
		return "", 0, fmt.Errorf("it is a pointer: handle events.Event[%s] and declare its methods on the value", t.Elem())
	case reflect.Interface:
		return "", 0, errors.New("it is an interface, which has no wire name: add one handler for each Go type that implements it")
	}
	if eventType, version, err = ask(t); err != nil {
		return "", 0, err
	}
	var faults []error
	// The rules for names are those of package events.
	probe := events.DomainEvent{
		EventID: events.NewID(), EventType: eventType, SchemaVersion: 1,
		AggregateID: "-", Timestamp: time.Unix(1, 0), Data: []byte("{}"),
	}
	var invalid *events.InvalidEventError
	if errors.As(probe.Validate(), &invalid) {
		faults = append(faults, fmt.Errorf("EventType of its zero value %s", invalid.Reason))
	}
	if version < 1 || version > events.MaxSchemaVersion {
		faults = append(faults, fmt.Errorf("SchemaVersion of its zero value is %d: return a constant, versions start at 1", version))
	}
	if len(faults) == 0 && t.Kind() == reflect.Struct {
		for i := range t.NumField() {
			if err := checkPromoted(t, t.Field(i), eventType, version); err != nil {
				faults = append(faults, err)
			}
		}
	}
	return eventType, version, errors.Join(faults...)
}

// checkPromoted refuses a struct that goes by the name of an event it embeds:
// Go promotes the methods, and the handler would get somebody else's events.
func checkPromoted(t reflect.Type, field reflect.StructField, eventType string, version int) error {
	inner := field.Type
	if inner.Kind() == reflect.Pointer {
		inner = inner.Elem()
	}
	if !field.Anonymous || !inner.Implements(payloadType) && !reflect.PointerTo(inner).Implements(payloadType) {
		return nil
	}
	if inner.Kind() != reflect.Interface {
		if innerType, innerVersion, err := ask(inner); err == nil && (innerType != eventType || innerVersion != version) {
			return nil
		}
	}
	return fmt.Errorf("it embeds the event %s and may go by its name: declare EventType, SchemaVersion and AggregateID on %s, or make the embedded event a named field", inner, t)
}

func ask(t reflect.Type) (eventType string, version int, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("EventType or SchemaVersion of its zero value panics (%v): let both return constants", v)
		}
	}()
	p := reflect.New(t).Interface().(events.Payload)
	return p.EventType(), p.SchemaVersion(), nil
}
