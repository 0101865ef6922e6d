package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"
)

// FuzzDecode: Decode never panics, refuses with ErrInvalidEvent, and accepts
// nothing that Encode would refuse or change.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(plus(`"schema_version":2,"correlation_id":"\ud83d\ude00","causation_id":null,"idempotency_key":"","metadata":{"a":"\n","b\u0062":""},"data":[1,{"a":null}],"x":{},"EVENT_ID":1`)))
	f.Add([]byte(plus(`"data":1,"event\u005fid":null`)))
	f.Add([]byte(` { "timestamp" : "2026-03-01T12:00:00.123456789+23:59" , "data" : "\ud800" } `))
	f.Add([]byte(`{"event_id":"01890A5D-ac96-774b-bcce-b302099a8057","event_type":"a.b","timestamp":"0001-01-01T00:00:00.000000001Z","data":-0.0e-0}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		e, err := Decode(document)
		if err != nil {
			if !errors.Is(err, ErrInvalidEvent) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if !json.Valid(document) {
			t.Fatalf("not JSON, and accepted: %q", document)
		}
		written, err := e.Encode()
		if err != nil {
			t.Fatalf("Encode refuses what Decode accepts: %v", err)
		}
		back, err := Decode(written)
		if err != nil {
			t.Fatalf("Decode refuses what Encode wrote: %v: %q", err, written)
		}
		wantEqual(t, back, e)
		if again, _ := back.Encode(); !bytes.Equal(again, written) {
			t.Fatalf("written twice, it differs:\n%q\n%q", written, again)
		}
		if len(written) > len(document)+len(`"schema_version":1,`) {
			t.Fatalf("%d bytes became %d", len(document), len(written))
		}
	})
}

// FuzzDataRoundTrip: data is either refused or comes back byte for byte, and
// what is accepted is what encoding/json takes for JSON.
func FuzzDataRoundTrip(f *testing.F) {
	for _, s := range []string{
		`{}`, `null`, ` {}`, `{"a":1,"a":2}`, `"\ud800\u0000"`, `-1.5E+300`, `1,"data":2`, "\"\u2028<>&\"", "[ ]", "\"\xff\"", `{"a":[`, `01`, `truefalse`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e := DomainEvent{EventID: [16]byte{1}, EventType: "a", SchemaVersion: 1, Timestamp: sampleTime, Data: data}
		document, err := e.Encode()
		acceptable := json.Valid(data) && utf8.Valid(data) && len(bytes.TrimSpace(data)) == len(data)
		if err != nil {
			// Only what nests too deep is JSON and refused; a short text cannot.
			if acceptable && len(data) < MaxDepth {
				t.Fatalf("refused: %v: %q", err, data)
			}
			return
		}
		if !acceptable {
			t.Fatalf("accepted: %q", data)
		}
		back, err := Decode(document)
		if err != nil {
			t.Fatalf("%v: %q", err, document)
		}
		if !bytes.Equal(back.Data, data) {
			t.Fatalf("data %q came back as %q", data, back.Data)
		}
		wantEqual(t, back, e)
		agreesWithEncodingJSON(t, document, back)
	})
}

// FuzzText: a text is either refused or comes back as it was, and encoding/json
// reads it alike.
func FuzzText(f *testing.F) {
	for _, s := range []string{"", "a", "\"\\/", "\b\f\n\r\t\x01\x7f", "\u2028\uFFFD\U0001F600", "\xff", "\x00", "\xed\xa0\x80"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, id, value string) {
		e := DomainEvent{EventID: [16]byte{1}, EventType: "a", SchemaVersion: 1, Timestamp: sampleTime, Data: json.RawMessage("1"),
			AggregateID: id, Metadata: map[string]string{"k": value}}
		document, err := e.Encode()
		if err != nil {
			return
		}
		back, err := Decode(document)
		if err != nil {
			t.Fatalf("%v: %q", err, document)
		}
		wantEqual(t, back, e)
		agreesWithEncodingJSON(t, document, back)
	})
}
