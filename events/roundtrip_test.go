package events

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
	"unicode"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// text draws what an id may hold: any Unicode but control characters.
func text(most int) *rapid.Generator[string] {
	printable := rapid.Rune().Filter(func(r rune) bool { return !unicode.IsControl(r) })
	return rapid.StringOfN(printable, -1, -1, most)
}

func jsonValue(depth int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.Int64().AsAny(), rapid.Float64Range(-1e300, 1e300).AsAny(), rapid.String().AsAny(),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	inner := jsonValue(depth - 1)
	return rapid.OneOf(append(scalars,
		rapid.SliceOfN(inner, 0, 4).AsAny(), rapid.MapOfN(rapid.String(), inner, 0, 4).AsAny())...)
}

// encoded draws a JSON value with white space inside, or none.
func encoded() *rapid.Generator[json.RawMessage] {
	return rapid.Custom(func(t *rapid.T) json.RawMessage {
		b, err := json.Marshal(jsonValue(3).Draw(t, "value"))
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "indented") {
			var out bytes.Buffer
			if err := json.Indent(&out, b, "\n", "\t"); err != nil {
				t.Fatal(err)
			}
			b = out.Bytes()
		}
		return b
	})
}

func anyEvent() *rapid.Generator[DomainEvent] {
	return rapid.Custom(func(t *rapid.T) DomainEvent {
		e := DomainEvent{
			EventID:        NewID(),
			EventType:      rapid.StringMatching(`[a-z0-9_]{1,20}(\.[a-z0-9_]{1,20}){0,4}`).Draw(t, "type"),
			SchemaVersion:  rapid.IntRange(1, MaxSchemaVersion).Draw(t, "version"),
			AggregateID:    text(MaxKeyBytes).Draw(t, "aggregate"),
			CorrelationID:  text(MaxIDBytes).Draw(t, "correlation"),
			CausationID:    text(MaxIDBytes).Draw(t, "causation"),
			IdempotencyKey: text(MaxIDBytes).Draw(t, "idempotency"),
			Data:           encoded().Draw(t, "data"),
		}
		free := rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r != 0 }), -1, -1, 200)
		key := text(MaxMetadataKeyBytes).Filter(func(s string) bool { return faultOfMetadata(one(s, "")) == "" })
		e.Metadata = rapid.MapOfN(key, free, 0, 20).Draw(t, "metadata")
		for k, v := range e.Metadata {
			if faultOfMetadata(one(k, v)) != "" { // a trace header with a line feed
				delete(e.Metadata, k)
			}
		}
		zone := time.FixedZone("", rapid.IntRange(-12*3600, 14*3600).Draw(t, "offset"))
		e.Timestamp = time.Unix(rapid.Int64Range(-62135596799, 253402300799).Draw(t, "seconds"), rapid.Int64Range(0, 999999999).Draw(t, "nanoseconds")).In(zone)
		return e
	})
}

// Data comes back byte for byte, all else by value, and the document is JSON
// that encoding/json reads alike.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := anyEvent().Draw(t, "event")
		document, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(document)
		if err != nil {
			t.Fatalf("%v: %s", err, document)
		}
		wantEqual(t, back, e)
		agreesWithEncodingJSON(t, document, back)
	})
}

// Members of newer writers come back byte for byte, wherever they stood.
func TestRoundTripOfUnknownMembers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := anyEvent().Draw(t, "event")
		document, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		names := rapid.SliceOfNDistinct(rapid.String().Filter(func(s string) bool { return memberNamed([]byte(s)) < 0 }), 1, 8, rapid.ID[string]).Draw(t, "names")
		for _, n := range names {
			member := append(appendString(nil, n), ':')
			member = append(member, encoded().Draw(t, "unknown")...)
			if len(e.unknown) > 0 {
				e.unknown = append(e.unknown, ',')
			}
			e.unknown = append(e.unknown, member...)
		}
		front := append([]byte("{"), e.unknown...)
		front = append(append(front, ','), document[1:]...)
		back, err := Decode(front)
		if err != nil {
			t.Fatalf("%v: %s", err, front)
		}
		wantEqual(t, back, e)
		again, err := back.Encode()
		if err != nil {
			t.Fatal(err)
		}
		end := append(append(append(document[:len(document)-1:len(document)-1], ','), e.unknown...), '}')
		if !bytes.Equal(again, end) {
			t.Fatalf("got  %s\nwant %s", again, end)
		}
	})
}

func agreesWithEncodingJSON(t interface {
	Helper()
	Fatalf(string, ...any)
}, document []byte, e DomainEvent) {
	t.Helper()
	var read struct {
		EventID        uuid.UUID         `json:"event_id"`
		EventType      string            `json:"event_type"`
		SchemaVersion  int               `json:"schema_version"`
		AggregateID    string            `json:"aggregate_id"`
		Timestamp      time.Time         `json:"timestamp"`
		CorrelationID  string            `json:"correlation_id"`
		CausationID    string            `json:"causation_id"`
		IdempotencyKey string            `json:"idempotency_key"`
		Metadata       map[string]string `json:"metadata"`
		Data           json.RawMessage   `json:"data"`
	}
	if err := json.Unmarshal(document, &read); err != nil {
		t.Fatalf("encoding/json: %v: %s", err, document)
	}
	wantEqual(t, DomainEvent{
		EventID: read.EventID, EventType: read.EventType, SchemaVersion: read.SchemaVersion, AggregateID: read.AggregateID,
		Timestamp: read.Timestamp, CorrelationID: read.CorrelationID, CausationID: read.CausationID,
		IdempotencyKey: read.IdempotencyKey, Metadata: read.Metadata, Data: read.Data, unknown: e.unknown,
	}, e)
}
