package events

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

type tags map[string]int

func (tags) EventType() string   { return "tags.set" }
func (tags) SchemaVersion() int  { return 1 }
func (tags) AggregateID() string { return "tags" }

// dynamic says of itself what its data says.
type dynamic struct{ Kind string }

func (d dynamic) EventType() string { return d.Kind }
func (dynamic) SchemaVersion() int  { return 1 }
func (dynamic) AggregateID() string { return "d" }

// lenient reads null by itself.
type lenient struct{ order }

func (l *lenient) UnmarshalJSON(b []byte) error { l.OrderID = string(b); return nil }

func TestTypedReadsWhatNewWrote(t *testing.T) {
	e := sampleEvent()
	got := must(Typed[order](must(Decode(must(e.Encode())))))
	if !reflect.DeepEqual(got.Data, sample) || got.EventID != e.EventID || string(got.DomainEvent.Data) != string(e.Data) {
		t.Errorf("got %#v", got)
	}
	if got := must(Typed[tags](must(New(t.Context(), tags(nil))))); got.Data != nil {
		t.Errorf("a nil map came back as %v", got.Data)
	}
	if got := must(Typed[dynamic](must(New(t.Context(), dynamic{"thing.done"})))); got.Data.Kind != "thing.done" {
		t.Errorf("got %v", got.Data)
	}
	null := e
	null.Data = json.RawMessage("null")
	if got := must(Typed[lenient](null)); got.Data.OrderID != "null" {
		t.Errorf("a type's own UnmarshalJSON was not asked: %v", got.Data)
	}
}

func TestTypedRefusesAnotherTypeOrVersion(t *testing.T) {
	e := sampleEvent()
	for _, c := range []struct {
		name   string
		change func(*DomainEvent)
		says   string
	}{
		{"another type", func(e *DomainEvent) { e.EventType = "order.cancelled" }, "order.cancelled"},
		{"a newer version", func(e *DomainEvent) { e.SchemaVersion = 3 }, "newer program"},
		{"an older version, whose data does not fit either", func(e *DomainEvent) {
			e.SchemaVersion, e.Data = 1, json.RawMessage(`{"total_cents":"12"}`)
		}, "upcast"},
	} {
		changed := e
		c.change(&changed)
		_, err := Typed[order](changed)
		var mismatch *MismatchError
		if !errors.As(err, &mismatch) || !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v", c.name, err)
			continue
		}
		if mismatch.HaveType != changed.EventType || mismatch.HaveVersion != changed.SchemaVersion ||
			mismatch.WantType != "order.placed" || mismatch.WantVersion != 2 || mismatch.EventID != e.EventID {
			t.Errorf("%s: got %#v", c.name, mismatch)
		}
	}
}

func TestTypedRefusesDataThatDoesNotFit(t *testing.T) {
	for _, c := range []struct{ name, data, says string }{
		{"a text for a number", `{"total_cents":"4711-secret"}`, "total_cents cannot go into int64"},
		{"a number too large", `{"total_cents":471147114711471147114711}`, "total_cents cannot go into int64"},
		{"an array", `[4711]`, "the value cannot go into events.order"},
		{"null", `null`, "null"},
		{"not JSON", `{`, "JSON"},
	} {
		e := sampleEvent()
		e.Data = json.RawMessage(c.data)
		_, err := Typed[order](e)
		wantInvalid(t, err, "decode the data of", "data")
		if err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "4711")) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestTypedRefusesPointersInterfacesAndPanics(t *testing.T) {
	e := sampleEvent()
	_, pointer := Typed[*order](e)
	_, iface := Typed[Payload](e)
	_, panics := Typed[panicky](DomainEvent{Data: json.RawMessage(`{}`)})
	for _, err := range []error{pointer, iface, panics} {
		var refused *PayloadError
		if !errors.As(err, &refused) {
			t.Errorf("got %v, want a *PayloadError", err)
		}
	}
}
