package events

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestNewFillsTheEnvelope(t *testing.T) {
	at := time.Date(2026, 3, 1, 13, 0, 0, 5, time.FixedZone("CET", 3600))
	s := &source{clock: clockOf(func() time.Time { return at }), random: rand.Uint64}

	e := must(s.build(context.Background(), sample))

	if e.EventID.Version() != 7 || e.EventID.Variant() != uuid.RFC4122 {
		t.Errorf("event id %s is no UUIDv7", e.EventID)
	}
	if e.EventType != "order.placed" || e.SchemaVersion != 2 || e.AggregateID != sample.OrderID || e.Key() != sample.OrderID {
		t.Errorf("the payload's own words are not in the envelope: %#v", e)
	}
	if e.Timestamp != time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC) {
		t.Errorf("timestamp %v is not the clock's, in UTC", e.Timestamp)
	}
	if e.CorrelationID != e.EventID.String() || e.CausationID != "" {
		t.Errorf("a root event has correlation %q, causation %q; want its own id and none", e.CorrelationID, e.CausationID)
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	if got := must(Typed[order](e)); !reflect.DeepEqual(got.Data, sample) {
		t.Errorf("read back %+v, want %+v", got.Data, sample)
	}
}

func TestNewStripsTheMonotonicClock(t *testing.T) {
	e := sampleEvent()
	back := must(Decode(must(e.Encode())))
	if back.Timestamp != e.Timestamp {
		t.Errorf("%v came back as %v: == does not hold", e.Timestamp, back.Timestamp)
	}
}

func TestNewByPointerIsLikeByValue(t *testing.T) {
	value, pointer := must(New(t.Context(), sample)), must(New(t.Context(), &sample))
	if string(value.Data) != string(pointer.Data) || value.EventType != pointer.EventType {
		t.Errorf("by value %s, by pointer %s", value.Data, pointer.Data)
	}
}

// An event published from inside a handler carries the correlation of the event
// handled, and its id as causation.
func TestCorrelationFollowsTheContext(t *testing.T) {
	root := must(New(ContextWithCorrelation(t.Context(), "request-7"), sample))
	if root.CorrelationID != "request-7" || root.CausationID != "" {
		t.Fatalf("root has correlation %q and causation %q", root.CorrelationID, root.CausationID)
	}
	ctx := ContextHandling(t.Context(), root)
	if Correlation(ctx) != "request-7" {
		t.Errorf("Correlation = %q under a handler", Correlation(ctx))
	}
	child := must(New(ctx, sample))
	if child.CorrelationID != "request-7" || child.CausationID != root.EventID.String() {
		t.Errorf("child has correlation %q and causation %q", child.CorrelationID, child.CausationID)
	}
	grandchild := must(New(ContextHandling(ctx, child), sample))
	if grandchild.CorrelationID != "request-7" || grandchild.CausationID != child.EventID.String() {
		t.Errorf("grandchild has correlation %q and causation %q", grandchild.CorrelationID, grandchild.CausationID)
	}
	apart := must(New(ContextWithCorrelation(ctx, "batch-1"), sample))
	if apart.CorrelationID != "batch-1" || apart.CausationID != root.EventID.String() {
		t.Errorf("another correlation lost the cause: %q, %q", apart.CorrelationID, apart.CausationID)
	}
	own := must(New(ctx, With(sample, CorrelatedWith("mine"))))
	if own.CorrelationID != "mine" {
		t.Errorf("CorrelatedWith does not win over the context: %q", own.CorrelationID)
	}
	foreign := DomainEvent{EventID: NewID()} // of a writer that knows no correlation
	if got := Correlation(ContextHandling(t.Context(), foreign)); got != foreign.EventID.String() {
		t.Errorf("an event without correlation is handled under %q, want its own id", got)
	}
	if got := Correlation(t.Context()); got != "" {
		t.Errorf("a bare context has correlation %q", got)
	}
}

func TestWithSetsOnePublication(t *testing.T) {
	id, at := NewID(), time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)
	inner := With(sample, PartitionKey("inner"), Metadata("a", "1"), Metadata("b", "1"))
	e := must(New(t.Context(), With(With(inner), PartitionKey("outer"), Metadata("b", "2"), Option{},
		ID(id), At(at), IdempotentBy("once"), CorrelatedWith("c"))))
	if e.PartitionKey != "outer" || e.Key() != "outer" || e.AggregateID != sample.OrderID {
		t.Errorf("the outer partition key does not hold: %q", e.PartitionKey)
	}
	if want := map[string]string{"a": "1", "b": "2"}; !reflect.DeepEqual(e.Metadata, want) {
		t.Errorf("metadata %v, want %v", e.Metadata, want)
	}
	if e.EventID != id || e.Timestamp != at || e.IdempotencyKey != "once" || e.CorrelationID != "c" {
		t.Errorf("options are missing: %#v", e)
	}
	if got, ok := Unwrap(With(inner)).(order); !ok || got.OrderID != sample.OrderID {
		t.Errorf("Unwrap gives %T", Unwrap(With(inner)))
	}
	if again := must(New(t.Context(), inner)); again.PartitionKey != "inner" || len(again.Metadata) != 2 || again.Metadata["b"] != "1" {
		t.Errorf("an option of one publication leaked into another: %v", again.Metadata)
	}
}

func TestOptionsRefuseNothing(t *testing.T) {
	for field, o := range map[string]Option{
		"partition_key": PartitionKey(""), "idempotency_key": IdempotentBy(""), "metadata": Metadata("", "v"),
		"event_id": ID(uuid.Nil), "timestamp": At(time.Time{}), "correlation_id": CorrelatedWith(""),
	} {
		_, err := New(t.Context(), With(sample, o))
		wantInvalid(t, err, "build", field)
		if err != nil && !strings.Contains(err.Error(), "order.placed") {
			t.Errorf("the error does not name the event: %v", err)
		}
	}
}

func TestRawFillsOnlyWhatIsMissing(t *testing.T) {
	cause := sampleEvent()
	ctx := ContextHandling(t.Context(), cause)

	bare := must(New(ctx, Raw(DomainEvent{EventType: "stock.counted", AggregateID: "shelf-1", Data: json.RawMessage(`{"n": 1}`)})))
	if bare.EventID == uuid.Nil || bare.SchemaVersion != 1 || bare.Timestamp.IsZero() ||
		bare.CorrelationID != cause.CorrelationID || bare.CausationID != cause.EventID.String() || string(bare.Data) != `{"n": 1}` {
		t.Errorf("gaps are left: %#v", bare)
	}

	full := sampleEventWithMetadata()
	full.CausationID, full.IdempotencyKey, full.PartitionKey = "because", "once", "key"
	if got := must(New(ctx, Raw(full))); !reflect.DeepEqual(got, full) {
		t.Errorf("a full envelope was changed:\n%#v\n%#v", got, full)
	}

	more := must(New(ctx, With(Raw(full), Metadata("tenant", "other"), PartitionKey("k2"))))
	if more.Metadata["tenant"] != "other" || more.PartitionKey != "k2" || full.Metadata["tenant"] != "acme" {
		t.Errorf("options over Raw: got %v, and the caller's own map is %v", more.Metadata, full.Metadata)
	}
	if Raw(bare).EventType() != bare.EventType || Raw(bare).AggregateID() != bare.AggregateID || Raw(DomainEvent{}).SchemaVersion() != 1 {
		t.Error("Raw does not say of itself what its envelope says")
	}

	// Published again from its own handler, an event is not its own cause.
	again := must(New(ContextHandling(t.Context(), cause), Raw(cause)))
	if again.CausationID != "" {
		t.Errorf("an event became its own cause: %q", again.CausationID)
	}

	_, err := New(t.Context(), Raw(DomainEvent{EventType: "stock.counted", AggregateID: "shelf-1"}))
	wantInvalid(t, err, "build", "data")
	_, err = New(t.Context(), Raw(DomainEvent{EventType: "stock.counted", AggregateID: "s", SchemaVersion: -1, Data: json.RawMessage(`{}`)}))
	wantInvalid(t, err, "build", "schema_version")
}

type panicky struct {
	*order // nil: the promoted methods panic
}

type panickyJSON struct{ order }

func (panickyJSON) MarshalJSON() ([]byte, error) { panic("canary " + strings.Repeat("x", 500)) }

// nastyError panics when it is asked what it says.
type nastyError struct{ text *string }

func (e *nastyError) Error() string { return *e.text }

type panickyError struct{ order }

func (panickyError) EventType() string { panic((*nastyError)(nil)) }

type unencodable struct {
	order
	C chan int
}

type versioned struct {
	order
	version int
}

func (v versioned) SchemaVersion() int { return v.version }

func TestNewRefusesBadPayloads(t *testing.T) {
	var nilPointer *order
	for _, c := range []struct {
		name    string
		payload Payload
		goType  string
		says    string
	}{
		{"nothing", nil, "nil", "there is none"},
		{"nothing in With", With(With(nil), PartitionKey("k")), "nil", "there is none"},
		{"nil pointer", nilPointer, "*events.order", "nil pointer"},
		{"nil pointer in With", With(nilPointer, PartitionKey("k")), "*events.order", "nil pointer"},
		{"embedded nil pointer", panicky{}, "events.panicky", "panicked: \"runtime error"},
		{"MarshalJSON panics", panickyJSON{sample}, "events.panickyJSON", "panicked"},
		{"panics with an error that panics", panickyError{sample}, "events.panickyError", "panicked"},
		{"a channel", unencodable{sample, nil}, "events.unencodable", "encoding/json refuses it"},
		{"not UTF-8", order{OrderID: "o", Note: "caf\xe9"}, "events.order", "not UTF-8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := New(t.Context(), c.payload)
			var refused *PayloadError
			if !errors.As(err, &refused) || !errors.Is(err, ErrInvalidEvent) {
				t.Fatalf("got %v, want a *PayloadError", err)
			}
			if refused.GoType != c.goType || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %q, want it to name %s and say %q", err, c.goType, c.says)
			}
			if (refused.Stack != nil) != strings.Contains(c.says, "panicked") {
				t.Errorf("stack of %d bytes", len(refused.Stack))
			}
			if len(err.Error()) > 600 {
				t.Errorf("the text is %d bytes long", len(err.Error()))
			}
			if e.EventType != "" || e.Data != nil {
				t.Errorf("an event came with the error: %#v", e)
			}
		})
	}
	for _, version := range []int{-1, 0, MaxSchemaVersion + 1} {
		_, err := New(t.Context(), versioned{sample, version})
		wantInvalid(t, err, "build", "schema_version")
	}
	_, err := New(t.Context(), order{})
	wantInvalid(t, err, "build", "aggregate_id")
	if e, err := New(t.Context(), With(order{}, PartitionKey("k"))); err != nil || e.Key() != "k" {
		t.Errorf("an event without aggregate but with a key: %v", err)
	}
}

func TestNewKeepsHTMLAndHonestReplacementCharacters(t *testing.T) {
	e := must(New(t.Context(), order{OrderID: "o", Note: "<b> & \uFFFD \\ufffd \u2028"}))
	if !strings.Contains(string(e.Data), "<b> & \uFFFD \\\\ufffd") {
		t.Errorf("data was escaped: %s", e.Data)
	}
	if got := must(Typed[order](e)); got.Data.Note != "<b> & \uFFFD \\ufffd \u2028" {
		t.Errorf("read back %q", got.Data.Note)
	}
}

func TestNewDoesNotHandOutPooledBytes(t *testing.T) {
	a := must(New(t.Context(), order{OrderID: "a"}))
	first := string(a.Data)
	for range 10 {
		must(New(t.Context(), order{OrderID: "bbbbbbbbbbbbbbbbbbbbbbbb"}))
	}
	if string(a.Data) != first {
		t.Errorf("data changed to %s under the event", a.Data)
	}
}

// wantInvalid wants an *InvalidEventError about field.
func wantInvalid(t *testing.T, err error, op, field string) {
	t.Helper()
	var invalid *InvalidEventError
	if !errors.As(err, &invalid) || !errors.Is(err, ErrInvalidEvent) {
		t.Errorf("got %v, want an *InvalidEventError about %s", err, field)
		return
	}
	if invalid.Field != field || invalid.Op != op {
		t.Errorf("%s %s is refused, want %s %s: %v", invalid.Op, invalid.Field, op, field, err)
	}
}
