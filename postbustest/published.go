package postbustest

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/postbus/postbus/events"
)

// Source is where published events are looked for: [InTx], [InLog], a *[Bus] or a
// *[Broker].
type Source interface {
	published(t testing.TB) []events.DomainEvent
	place() string
}

// RequirePublished gives the events of T's type and version that from has, in the
// order of publication, and fails the test unless there is one that the options fit:
// at least one, or as many as [Times] says. The failure says what there is instead.
//
// Data is decoded from what was encoded: it is what a handler behind the broker
// gets, without fields that JSON does not carry.
func RequirePublished[T events.Payload](t testing.TB, from Source, opts ...Option) []events.Event[T] {
	t.Helper()
	if k := reflect.TypeFor[T]().Kind(); k == reflect.Pointer || k == reflect.Interface {
		t.Fatalf("RequirePublished[%s]: events are decoded into values: name the struct type itself, not a pointer or an interface", reflect.TypeFor[T]())
	}
	all := from.published(t)
	var found []events.Event[T]
	for _, e := range all {
		typed, err := events.Typed[T](e)
		var mismatch *events.MismatchError
		switch {
		case errors.As(err, &mismatch):
			continue
		case err != nil:
			t.Fatalf("RequirePublished[%s]: %v", reflect.TypeFor[T](), err)
		}
		fits, err := fit(opts, typed)
		if err != nil {
			t.Fatalf("RequirePublished[%s]: %v", reflect.TypeFor[T](), err)
		}
		if fits {
			found = append(found, typed)
		}
	}
	if !enough(opts, len(found)) {
		t.Fatalf("%s: %d events %s%s, want %s%s", from.place(), len(found), reflect.TypeFor[T](), describe(opts), wanted(opts), instead(all))
	}
	return found
}

// RequireNothingPublished fails the test if from has any event, and says which.
func RequireNothingPublished(t testing.TB, from Source) {
	t.Helper()
	if all := from.published(t); len(all) > 0 {
		t.Fatalf("%s: %d events, want none%s", from.place(), len(all), instead(all))
	}
}

// Option narrows what [RequirePublished] looks for. See [Times], [WithKey] and [Where].
type Option struct {
	times *int
	text  string
	fits  func(event any) (bool, error) // an events.Event[T]; nil: all
}

// Times asks for exactly n events. Times(0): none of this type.
func Times(n int) Option { return Option{times: &n} }

// WithKey asks for events of this partition key, which is the aggregate id unless
// the publication says otherwise.
func WithKey(key string) Option {
	return Option{text: fmt.Sprintf(" with the key %q", key), fits: func(event any) (bool, error) {
		return event.(interface{ Key() string }).Key() == key, nil
	}}
}

// Where asks for events that f accepts. T is that of RequirePublished; another one
// fails the test.
func Where[T events.Payload](f func(e events.Event[T]) bool) Option {
	return Option{text: " that Where accepts", fits: func(event any) (bool, error) {
		e, ok := event.(events.Event[T])
		if !ok {
			return false, fmt.Errorf("its Where is for %s: write both for the same type", reflect.TypeFor[T]())
		}
		return f(e), nil
	}}
}

func fit(opts []Option, event any) (bool, error) {
	for _, o := range opts {
		if o.fits == nil {
			continue
		}
		if ok, err := o.fits(event); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

func enough(opts []Option, n int) bool {
	if want := timesOf(opts); want != nil {
		return n == *want
	}
	return n > 0
}

func wanted(opts []Option) string {
	if want := timesOf(opts); want != nil {
		return fmt.Sprint(*want)
	}
	return "at least one"
}

func timesOf(opts []Option) (times *int) {
	for _, o := range opts {
		if o.times != nil {
			times = o.times
		}
	}
	return times
}

func describe(opts []Option) string {
	var b strings.Builder
	for _, o := range opts {
		b.WriteString(o.text)
	}
	return b.String()
}

// instead tells what there is. Data of a test may be shown; it is clipped.
func instead(all []events.DomainEvent) string {
	if len(all) == 0 {
		return "; there is none of any type"
	}
	lines := make([]string, len(all))
	for i, e := range all {
		lines[i] = fmt.Sprintf("%s v%d  key %q  id %s  %s", e.EventType, e.SchemaVersion, e.Key(), e.EventID, clip(string(e.Data), 200))
	}
	return "; there is:" + list(lines)
}

const mostLines = 20

// list puts each line on one of its own, up to mostLines.
func list(lines []string) string {
	var b strings.Builder
	for i, line := range lines {
		if i == mostLines {
			fmt.Fprintf(&b, "\n\t... and %d more", len(lines)-i)
			break
		}
		b.WriteString("\n\t" + line)
	}
	return b.String()
}

func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "..."
}
