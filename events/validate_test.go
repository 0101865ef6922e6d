package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// limitCases changes one thing about a sound event. Field is what must be
// refused, "" for nothing.
var limitCases = []struct {
	name   string
	change func(*DomainEvent)
	field  string
}{
	{"as it is", func(e *DomainEvent) {}, ""},
	{"id zero", func(e *DomainEvent) { e.EventID = uuid.Nil }, "event_id"},
	{"id of another version", func(e *DomainEvent) { e.EventID = uuid.Max }, ""},

	{"type empty", func(e *DomainEvent) { e.EventType = "" }, "event_type"},
	{"type of one segment", func(e *DomainEvent) { e.EventType = "order_2" }, ""},
	{"type longest", func(e *DomainEvent) { e.EventType = strings.Repeat("a", 128) }, ""},
	{"type too long", func(e *DomainEvent) { e.EventType = strings.Repeat("a", 129) }, "event_type"},
	{"type in upper case", func(e *DomainEvent) { e.EventType = "Order.placed" }, "event_type"},
	{"type with a hyphen", func(e *DomainEvent) { e.EventType = "order-placed" }, "event_type"},
	{"type beginning with a dot", func(e *DomainEvent) { e.EventType = ".order" }, "event_type"},
	{"type ending with a dot", func(e *DomainEvent) { e.EventType = "order." }, "event_type"},
	{"type with two dots", func(e *DomainEvent) { e.EventType = "order..placed" }, "event_type"},
	{"type with a wildcard", func(e *DomainEvent) { e.EventType = "order.*" }, "event_type"},
	{"type not UTF-8", func(e *DomainEvent) { e.EventType = "order\xff" }, "event_type"},
	{"type with NUL", func(e *DomainEvent) { e.EventType = "order\x00" }, "event_type"},

	{"version 0", func(e *DomainEvent) { e.SchemaVersion = 0 }, "schema_version"},
	{"version negative", func(e *DomainEvent) { e.SchemaVersion = -1 }, "schema_version"},
	{"version highest", func(e *DomainEvent) { e.SchemaVersion = 1<<31 - 1 }, ""},
	{"version too high", func(e *DomainEvent) { e.SchemaVersion = 1 << 31 }, "schema_version"},

	{"time zero", func(e *DomainEvent) { e.Timestamp = time.Time{} }, "timestamp"},
	{"time earliest", func(e *DomainEvent) { e.Timestamp = time.Time{}.Add(1) }, ""},
	{"time latest", func(e *DomainEvent) { e.Timestamp = time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC) }, ""},
	{"time in the year 10000", func(e *DomainEvent) { e.Timestamp = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "timestamp"},
	{"time in the year 10000 in UTC alone", func(e *DomainEvent) {
		e.Timestamp = time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -2*3600))
	}, "timestamp"},
	{"time in the year 0", func(e *DomainEvent) { e.Timestamp = time.Date(0, 12, 31, 0, 0, 0, 0, time.UTC) }, "timestamp"},
	{"time before the years", func(e *DomainEvent) { e.Timestamp = time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC) }, "timestamp"},

	{"aggregate longest", func(e *DomainEvent) { e.AggregateID = strings.Repeat("é", 127) + "e" }, ""},
	{"aggregate too long", func(e *DomainEvent) { e.AggregateID = strings.Repeat("é", 128) }, "aggregate_id"},
	{"aggregate with NUL", func(e *DomainEvent) { e.AggregateID = "a\x00b" }, "aggregate_id"},
	{"aggregate with a line feed", func(e *DomainEvent) { e.AggregateID = "a\nb" }, "aggregate_id"},
	{"aggregate with DEL", func(e *DomainEvent) { e.AggregateID = "a\x7fb" }, "aggregate_id"},
	{"aggregate with a C1 control", func(e *DomainEvent) { e.AggregateID = "a\u0085b" }, "aggregate_id"},
	{"aggregate not UTF-8", func(e *DomainEvent) { e.AggregateID = "a\xc3" }, "aggregate_id"},
	{"aggregate with a surrogate", func(e *DomainEvent) { e.AggregateID = "a\xed\xa0\x80" }, "aggregate_id"},
	{"aggregate with quotes and others", func(e *DomainEvent) { e.AggregateID = "a \"b\"\\/ é\uFFFD\U0001F600\u2028" }, ""},
	{"partition key too long", func(e *DomainEvent) { e.PartitionKey = strings.Repeat("k", 256) }, "partition_key"},
	{"partition key with NUL", func(e *DomainEvent) { e.PartitionKey = "\x00" }, "partition_key"},
	{"correlation too long", func(e *DomainEvent) { e.CorrelationID = strings.Repeat("k", 256) }, "correlation_id"},
	{"correlation with CR", func(e *DomainEvent) { e.CorrelationID = "a\r\nb: c" }, "correlation_id"},
	{"correlation empty", func(e *DomainEvent) { e.CorrelationID = "" }, ""},
	{"causation too long", func(e *DomainEvent) { e.CausationID = strings.Repeat("k", 256) }, "causation_id"},
	{"idempotency key longest", func(e *DomainEvent) { e.IdempotencyKey = strings.Repeat("k", 255) }, ""},
	{"idempotency key too long", func(e *DomainEvent) { e.IdempotencyKey = strings.Repeat("k", 256) }, "idempotency_key"},

	{"metadata most", func(e *DomainEvent) { e.Metadata = entries(64) }, ""},
	{"metadata too many", func(e *DomainEvent) { e.Metadata = entries(65) }, "metadata"},
	{"metadata largest", func(e *DomainEvent) { e.Metadata = one("k", strings.Repeat("v", 16<<10-1)) }, ""},
	{"metadata too large", func(e *DomainEvent) { e.Metadata = one("k", strings.Repeat("v", 16<<10)) }, "metadata"},
	{"metadata empty", func(e *DomainEvent) { e.Metadata = map[string]string{} }, ""},
	{"metadata value empty", func(e *DomainEvent) { e.Metadata = one("k", "") }, ""},
	{"metadata value with controls", func(e *DomainEvent) { e.Metadata = one("k", "a\r\n\t\b\f\x01\x7f\"\\") }, ""},
	{"metadata value with NUL", func(e *DomainEvent) { e.Metadata = one("k", "a\x00") }, "metadata"},
	{"metadata value not UTF-8", func(e *DomainEvent) { e.Metadata = one("k", "a\xff") }, "metadata"},
	{"metadata key empty", func(e *DomainEvent) { e.Metadata = one("", "v") }, "metadata"},
	{"metadata key longest", func(e *DomainEvent) { e.Metadata = one(strings.Repeat("k", 128), "v") }, ""},
	{"metadata key too long", func(e *DomainEvent) { e.Metadata = one(strings.Repeat("k", 129), "v") }, "metadata"},
	{"metadata key with CR LF", func(e *DomainEvent) { e.Metadata = one("a\r\nb", "v") }, "metadata"},
	{"metadata key with NUL", func(e *DomainEvent) { e.Metadata = one("a\x00", "v") }, "metadata"},
	{"metadata key not UTF-8", func(e *DomainEvent) { e.Metadata = one("a\xff", "v") }, "metadata"},
	{"metadata key reserved by us", func(e *DomainEvent) { e.Metadata = one("postbus_position", "v") }, "metadata"},
	{"metadata key reserved in another case", func(e *DomainEvent) { e.Metadata = one("PostBus_x", "v") }, "metadata"},
	{"metadata key reserved by Watermill", func(e *DomainEvent) { e.Metadata = one("_watermill_message_uuid", "v") }, "metadata"},
	{"metadata key like a reserved one", func(e *DomainEvent) { e.Metadata = one("postbus", "v") }, ""},
	{"trace parent with CR LF", func(e *DomainEvent) { e.Metadata = one("traceparent", "00-1\r\nx: y") }, "metadata"},
	{"trace state with CR LF", func(e *DomainEvent) { e.Metadata = one("tracestate", "a=b\n") }, "metadata"},

	{"data nil", func(e *DomainEvent) { e.Data = nil }, "data"},
	{"data null", func(e *DomainEvent) { e.Data = json.RawMessage(`null`) }, ""},
	{"data a number", func(e *DomainEvent) { e.Data = json.RawMessage(`-1.50E+400`) }, ""},
	{"data with inner white space", func(e *DomainEvent) { e.Data = json.RawMessage("{ \"a\" :\n[1 , 2] }") }, ""},
	{"data with white space in front", func(e *DomainEvent) { e.Data = json.RawMessage(" {}") }, "data"},
	{"data with white space behind", func(e *DomainEvent) { e.Data = json.RawMessage("{}\n") }, "data"},
	{"data of two values", func(e *DomainEvent) { e.Data = json.RawMessage(`{}{}`) }, "data"},
	{"data cut", func(e *DomainEvent) { e.Data = json.RawMessage(`{"a":`) }, "data"},
	{"data not JSON", func(e *DomainEvent) { e.Data = json.RawMessage(`hello`) }, "data"},
	{"data that breaks out", func(e *DomainEvent) { e.Data = json.RawMessage(`1,"event_id":"x"`) }, "data"},
	{"data not UTF-8", func(e *DomainEvent) { e.Data = json.RawMessage("\"\xff\"") }, "data"},
	{"data with NUL and half a surrogate, escaped", func(e *DomainEvent) { e.Data = json.RawMessage(`"\u0000\ud800"`) }, ""},
	{"data with equal members", func(e *DomainEvent) { e.Data = json.RawMessage(`{"a":1,"a":2,"A":3}`) }, ""},
	{"data deepest", func(e *DomainEvent) { e.Data = nested(MaxDepth) }, ""},
	{"data too deep", func(e *DomainEvent) { e.Data = nested(MaxDepth + 1) }, "data"},
}

func one(k, v string) map[string]string { return map[string]string{k: v} }

func entries(n int) map[string]string {
	m := make(map[string]string)
	for i := range n {
		m[fmt.Sprint("k", i)] = "v"
	}
	return m
}

func nested(n int) json.RawMessage {
	return json.RawMessage(strings.Repeat(`{"a":[`, n/2) + strings.Repeat("[", n%2) + strings.Repeat("]", n%2) + strings.Repeat("]}", n/2))
}

// Validate, Encode and Decode have one opinion on every limit.
func TestLimits(t *testing.T) {
	for _, c := range limitCases {
		t.Run(c.name, func(t *testing.T) {
			e := sampleEvent()
			c.change(&e)
			document, err := e.Encode()
			if c.field != "" {
				wantInvalid(t, e.Validate(), "validate", c.field)
				wantInvalid(t, err, "encode", c.field)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Validate(); err != nil {
				t.Error(err)
			}
			if !json.Valid(document) {
				t.Errorf("not JSON: %s", document)
			}
			back, err := Decode(document)
			if err != nil {
				t.Fatalf("%v: %s", err, document)
			}
			e.PartitionKey = "" // travels beside the document
			wantEqual(t, back, e)
		})
	}
}

func TestValidateWantsAKey(t *testing.T) {
	e := sampleEvent()
	e.AggregateID = ""
	wantInvalid(t, e.Validate(), "validate", "aggregate_id")
	e.PartitionKey = "k"
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	// Its key is beside the document: reading and writing it again must work.
	if _, err := must(Decode(must(e.Encode()))).Encode(); err != nil {
		t.Error(err)
	}
}

func TestCheckSize(t *testing.T) {
	e := sampleEvent()
	for _, c := range []struct {
		size, limit int
		fits        bool
	}{
		{MaxDocumentBytes, 0, true}, {MaxDocumentBytes + 1, 0, false}, {MaxDocumentBytes + 1, -1, false},
		{1000, 1000, true}, {1001, 1000, false}, {1 << 20, 2 << 20, true},
	} {
		err := e.CheckSize(c.size, c.limit)
		if c.fits != (err == nil) {
			t.Errorf("%d bytes with limit %d: %v", c.size, c.limit, err)
		}
		var large *TooLargeError
		if !c.fits && (!errors.Is(err, ErrTooLarge) || !errors.Is(err, ErrInvalidEvent) || !errors.As(err, &large) || large.Size != c.size || large.EventID != e.EventID) {
			t.Errorf("%d bytes with limit %d: %#v", c.size, c.limit, err)
		}
	}
}

func TestHardLimit(t *testing.T) {
	e := sampleEvent()
	e.Data = json.RawMessage(`""`)
	around := len(must(e.Encode())) - len(e.Data)
	data := func(n int) json.RawMessage { return json.RawMessage(`"` + strings.Repeat("a", n-2) + `"`) }

	e.Data = data(HardMaxDocumentBytes - around)
	document := must(e.Encode())
	if len(document) != HardMaxDocumentBytes {
		t.Fatalf("the test is off: %d bytes", len(document))
	}
	must(Decode(document))
	wantTooLarge(t, second(Decode(append(document, ' '))))

	// Without its schema version the document is just short enough to be read,
	// and would be too long when written again.
	shorter := strings.Replace(string(document), `"schema_version":2,`, "", 1)
	must(Decode([]byte(shorter)))
	wantTooLarge(t, second(Decode([]byte(shorter+" "))))

	dst := []byte("dst")
	e.Data = data(HardMaxDocumentBytes - around + 1)
	got, err := e.AppendTo(dst)
	wantTooLarge(t, err)
	if string(got) != "dst" {
		t.Errorf("AppendTo gave back %d bytes with its error", len(got))
	}
	e.Data = data(HardMaxDocumentBytes + 1)
	wantTooLarge(t, e.Validate())
}

func second[T any](_ T, err error) error { return err }

func wantTooLarge(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrTooLarge) || !errors.Is(err, ErrInvalidEvent) {
		t.Errorf("got %v, want a *TooLargeError", err)
	}
}

// wantEqual compares by value: times as moments, no metadata like empty metadata.
func wantEqual(t interface {
	Helper()
	Fatalf(string, ...any)
}, got, want DomainEvent) {
	t.Helper()
	same := got.EventID == want.EventID && got.EventType == want.EventType && got.SchemaVersion == want.SchemaVersion &&
		got.AggregateID == want.AggregateID && got.Timestamp.Equal(want.Timestamp) &&
		got.CorrelationID == want.CorrelationID && got.CausationID == want.CausationID &&
		got.IdempotencyKey == want.IdempotencyKey && got.PartitionKey == want.PartitionKey &&
		len(got.Metadata) == len(want.Metadata) && string(got.Data) == string(want.Data) && string(got.unknown) == string(want.unknown)
	for k, v := range want.Metadata {
		if w, ok := got.Metadata[k]; !ok || w != v {
			same = false
		}
	}
	if !same {
		t.Fatalf("got  %#v\nwant %#v", got, want)
	}
}
