package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// Typed decodes the data of e into T, a value type such as order.Placed.
//
// It returns a *[MismatchError] when e is of another event type or schema
// version than T says of itself, and an *[InvalidEventError] when the data does
// not fit T, or is null where T is a struct, which would pass as an event with
// nothing in it. Members that T has no field for are ignored, so that a writer
// may add some without a new version. A pointer type T is refused.
func Typed[T Payload](e DomainEvent) (Event[T], error) {
	out := Event[T]{DomainEvent: e}
	kind := reflect.TypeFor[T]().Kind()
	if kind == reflect.Pointer || kind == reflect.Interface {
		return Event[T]{}, &PayloadError{
			GoType: reflect.TypeFor[T]().String(),
			Reason: "events are decoded into values: name the struct type itself, not a pointer or an interface",
		}
	}
	err := decodeData(e.Data, &out.Data)

	// T is asked once the data is in it: its methods may depend on that, and
	// those of an ordinary payload do not mind if it failed. A mismatch is the
	// better answer to data that does not fit.
	haveType, haveVersion, _, fault := describe(out.Data)
	if fault != nil {
		if err == nil {
			return Event[T]{}, fault
		}
	} else if haveType != e.EventType || haveVersion != e.SchemaVersion {
		return Event[T]{}, &MismatchError{
			GoType: reflect.TypeFor[T]().String(), EventID: e.EventID,
			HaveType: e.EventType, WantType: haveType,
			HaveVersion: e.SchemaVersion, WantVersion: haveVersion,
		}
	}
	if err != nil {
		return Event[T]{}, &InvalidEventError{
			Op: "decode the data of", EventType: e.EventType, EventID: e.EventID, Field: "data",
			Reason: "does not fit the Go type " + reflect.TypeFor[T]().String() + " (" + explain(err) + "): correct the type, or raise its schema version",
			Err:    err,
		}
	}
	return out, nil
}

var errNull = errors.New("the data is null")

func decodeData[T any](data json.RawMessage, into *T) error {
	if string(data) == "null" && reflect.TypeFor[T]().Kind() == reflect.Struct {
		if _, decides := any(into).(json.Unmarshaler); !decides {
			return errNull
		}
	}
	return json.Unmarshal(data, into)
}

// explain says what is wrong without the data itself, which encoding/json quotes.
func explain(err error) string {
	var mistyped *json.UnmarshalTypeError
	if errors.As(err, &mistyped) {
		where := "the value"
		if mistyped.Field != "" {
			where = clip(mistyped.Field)
		}
		return fmt.Sprintf("%s cannot go into %s, at byte %d", where, mistyped.Type, mistyped.Offset)
	}
	return clipCause(err)
}
