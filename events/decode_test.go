package events

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	head = `{"event_id":"01890a5d-ac96-774b-bcce-b302099a8057","event_type":"order.placed","aggregate_id":"o-1","timestamp":"2026-03-01T12:00:00.5Z"`
	full = head + `,"data":{}}`
)

// plus gives the document head with more members in it.
func plus(more string) string { return head + "," + more + "}" }

func TestDecodeReadsWhatOthersWrite(t *testing.T) {
	plain := must(Decode([]byte(full)))
	if plain.SchemaVersion != 1 {
		t.Errorf("a missing schema version reads as %d", plain.SchemaVersion)
	}
	if plain.Timestamp != time.Date(2026, 3, 1, 12, 0, 0, 5e8, time.UTC) {
		t.Errorf("timestamp %v", plain.Timestamp)
	}
	for name, document := range map[string]string{
		"white space":       " \r\n" + strings.NewReplacer(`,"`, " ,\n\t\"", `":`, `" : `).Replace(full) + "\n",
		"nulls":             plus(`"schema_version":null,"correlation_id":null,"causation_id":null,"idempotency_key":null,"metadata":null,"data":{}`),
		"empty texts":       plus(`"correlation_id":"","metadata":{},"data":{}`),
		"another order":     `{"data":{},` + head[1:] + `}`,
		"escapes":           strings.Replace(strings.Replace(full, "order.placed", `order\u002Eplace\u0064`, 1), `"event_id"`, `"\u0065vent_id"`, 1),
		"id in upper case":  strings.Replace(full, "01890a5d-ac96-774b-bcce-b302099a8057", "01890A5D-AC96-774B-BCCE-B302099A8057", 1),
		"another time zone": strings.Replace(full, "12:00:00.5Z", "14:30:00.500+02:30", 1),
		"version":           plus(`"schema_version":1,"data":{}`),
	} {
		got, err := Decode([]byte(document))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		t.Run(name, func(t *testing.T) { wantEqual(t, got, plain) })
	}
	texts := must(Decode([]byte(plus(`"correlation_id":"\ud83d\ude00\/\"\\","metadata":{"\u0061":"\b\f\n\r\t\u0001 \uFFFD"},"data":{}`))))
	if texts.CorrelationID != "\U0001F600/\"\\" || texts.Metadata["a"] != "\b\f\n\r\t\x01 \uFFFD" {
		t.Errorf("texts read as %q and %q", texts.CorrelationID, texts.Metadata)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct{ name, document, field, says string }{
		{"nothing", ``, "document", "object should begin"},
		{"an array", `[]`, "document", "object should begin"},
		{"null", `null`, "document", "object should begin"},
		{"an empty object", `{}`, "data", "missing"},
		{"a byte order mark", "\uFEFF" + full, "document", "object should begin"},
		{"not UTF-8", strings.Replace(full, "o-1", "o-\xff", 1), "document", "not UTF-8"},
		{"trailing text", full + "x", "document", "at byte " + strconv.Itoa(len(full))},
		{"trailing object", full + full, "document", "follows the event"},
		{"cut", full[:len(full)-1], "document", "go on with a comma or end"},
		{"trailing comma", head + `,"data":{},}`, "document", "member name"},
		{"no colon", `{"event_id" "x"}`, "document", "colon"},
		{"no comma", `{"a":1 "b":2}`, "document", "comma"},
		{"data missing", head + "}", "data", "missing"},
		{"data cut", plus(`"data":{"a":}`), "data", "value should begin"},
		{"data too deep", plus(`"data":` + string(nested(MaxDepth+1))), "data", "nest deeper"},
		{"unknown too deep", plus(`"data":{},"x":` + string(nested(MaxDepth+1))), "document", "nest deeper"},

		{"id twice", plus(`"data":{},"event_id":"01890a5d-ac96-774b-bcce-b302099a8057"`), "event_id", "twice"},
		{"id twice, once escaped", plus(`"data":{},"event\u005fid":null`), "event_id", "twice"},
		{"data twice", plus(`"data":1,"data":2`), "data", "twice"},
		{"unknown twice", plus(`"data":1,"x":1,"\u0078":2`), "document", `x twice`},
		{"metadata key twice", plus(`"metadata":{"a":"1","\u0061":"1"},"data":1`), "metadata", "twice"},

		{"id missing", `{"event_type":"a","timestamp":"2026-03-01T12:00:00Z","data":1}`, "event_id", "missing"},
		{"id in another case", `{"EVENT_ID":"01890a5d-ac96-774b-bcce-b302099a8057","event_type":"a","timestamp":"2026-03-01T12:00:00Z","data":1}`, "event_id", "missing"},
		{"id zero", strings.Replace(full, "01890a5d-ac96-774b-bcce-b302099a8057", "00000000-0000-0000-0000-000000000000", 1), "event_id", "zero"},
		{"id as URN", strings.Replace(full, "01890a5d", "urn:uuid:01890a5d", 1), "event_id", "36 characters"},
		{"id without hyphens", strings.Replace(full, "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5dac96774bbcceb302099a8057", 1), "event_id", "36 characters"},
		{"id a number", `{"event_id":7}`, "event_id", "not a string"},
		{"type missing", strings.Replace(full, "event_type", "type", 1), "event_type", "empty"},
		{"type an object", `{"event_type":{}}`, "event_type", "not a string"},
		{"time missing", strings.Replace(full, "timestamp", "time", 1), "timestamp", "missing"},
		{"time a number", `{"timestamp":1}`, "timestamp", "not a string"},
		{"time without zone", strings.Replace(full, "00.5Z", "00.5", 1), "timestamp", "RFC 3339"},
		{"time with a comma", strings.Replace(full, "00.5Z", "00,5Z", 1), "timestamp", "RFC 3339"},
		{"time with one digit for the hour", strings.Replace(full, "T12:", "T2:", 1), "timestamp", "RFC 3339"},
		{"time finer than nanoseconds", strings.Replace(full, "00.5Z", "00.1234567891Z", 1), "timestamp", "nine digits"},
		{"time in the year 0", strings.Replace(full, "2026-03", "0000-03", 1), "timestamp", "year 0"},
		{"time in the year 10000 in UTC", strings.Replace(full, "2026-03-01T12:00:00.5Z", "9999-12-31T23:30:00-01:00", 1), "timestamp", "year 10000"},
		{"time with an offset beyond a day", strings.Replace(full, "00.5Z", "00+24:00", 1), "timestamp", "RFC 3339"},
		{"time with half an offset", strings.Replace(full, "00.5Z", "00+02", 1), "timestamp", "RFC 3339"},
		{"time with a bare point", strings.Replace(full, "00.5Z", "00.Z", 1), "timestamp", "RFC 3339"},
		{"time with a leap second", strings.Replace(full, "12:00:00.5Z", "23:59:60Z", 1), "timestamp", "RFC 3339"},

		{"version 0", plus(`"schema_version":0,"data":1`), "schema_version", "is 0"},
		{"version -1", plus(`"schema_version":-1,"data":1`), "schema_version", "whole number"},
		{"version 1.0", plus(`"schema_version":1.0,"data":1`), "schema_version", "whole number"},
		{"version 1e0", plus(`"schema_version":1e0,"data":1`), "schema_version", "whole number"},
		{"version 2147483648", plus(`"schema_version":2147483648,"data":1`), "schema_version", "whole number"},
		{"version true", plus(`"schema_version":true,"data":1`), "schema_version", "whole number"},
		{"version huge", plus(`"schema_version":` + strings.Repeat("9", 400) + `,"data":1`), "schema_version", "whole number"},
		{"version a string", plus(`"schema_version":"1","data":1`), "schema_version", "whole number"},

		{"half a pair in a text", plus(`"correlation_id":"a\ud800","data":1`), "correlation_id", "surrogate"},
		{"half a pair, then another escape", plus(`"correlation_id":"\ud800\n","data":1`), "correlation_id", "surrogate"},
		{"the wrong half first", plus(`"correlation_id":"\udc00\ud800","data":1`), "correlation_id", "surrogate"},
		{"two first halves", plus(`"correlation_id":"\ud800\ud800","data":1`), "correlation_id", "surrogate"},
		{"half a pair in a metadata key", plus(`"metadata":{"\ud800":"x"},"data":1`), "metadata", "surrogate"},
		{"half a pair in a metadata value", plus(`"metadata":{"x":"\ud800"},"data":1`), "metadata", "surrogate"},
		{"half a pair in a name", plus(`"\ud800":1,"data":1`), "document", "surrogate"},
		{"NUL in a text", plus(`"correlation_id":"\u0000","data":1`), "correlation_id", "control"},
		{"NUL in metadata", plus(`"metadata":{"a":"\u0000"},"data":1`), "metadata", "control"},
		{"metadata an array", plus(`"metadata":["a"],"data":1`), "metadata", "not an object"},
		{"metadata value a number", plus(`"metadata":{"a":1},"data":1`), "metadata", "not a string"},
		{"metadata value null", plus(`"metadata":{"a":null},"data":1`), "metadata", "not a string"},
		{"metadata key reserved", plus(`"metadata":{"_watermill_x":"1"},"data":1`), "metadata", "reserved"},
		{"metadata too many", plus(`"metadata":{` + manyMembers(65) + `},"data":1`), "metadata", "more than 64"},
		{"unknown too many", plus(`"data":1,` + manyMembers(65)), "document", "more than 64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := Decode([]byte(c.document))
			wantInvalid(t, err, "decode", c.field)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %q, want it to say %q", err, c.says)
			}
			if e.EventType != "" || e.Data != nil {
				t.Errorf("an event came with the error: %#v", e)
			}
		})
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"m%d":"v"`, i)
	}
	return b.String()
}

// What a newer writer added survives, byte for byte and in its order, and a
// known name in another case is an unknown one.
func TestUnknownMembersSurvive(t *testing.T) {
	unknown := `"tenant" : { "id":1.0e0, "n":"\u00e9\ud800" },"EVENT_ID":"not an id","Data":null,"esc\u0061ped":[ ]`
	e := must(Decode([]byte(plus(`"data":{}, ` + unknown))))
	want := strings.Replace(unknown, `"tenant" : {`, `"tenant":{`, 1) // white space between members is no value
	document := must(e.Encode())
	if !strings.HasSuffix(string(document), `"data":{},`+want+`}`) {
		t.Fatalf("got %s\nwant at its end %s", document, want)
	}
	again := must(Decode(document))
	wantEqual(t, again, e)
	if string(must(again.Encode())) != string(document) {
		t.Error("a third writing differs")
	}
	must(Decode([]byte(plus(`"data":1,` + manyMembers(64)))))
	if moved := must(New(t.Context(), Raw(e))); string(moved.unknown) != want {
		t.Errorf("published again, the event lost them: %s", moved.unknown)
	}
}

func TestDecodeKeepsNothingOfTheDocument(t *testing.T) {
	document := []byte(plus(`"correlation_id":"c","metadata":{"k":"v"},"data":{"a":1},"x":2`))
	e := must(Decode(document))
	before := string(must(e.Encode()))
	clear(document)
	if after := string(must(e.Encode())); after != before {
		t.Errorf("the event changed with the document:\n%q\n%q", before, after)
	}
}

func TestEncodeWritesTheMembersInOrder(t *testing.T) {
	e := must(Decode([]byte(plus(`"data":{ "b":"<&>" },"schema_version":3,"idempotency_key":"i","causation_id":"ca","correlation_id":"co","metadata":{"b":"2","a":"1"},"z":0`))))
	want := `{"event_id":"01890a5d-ac96-774b-bcce-b302099a8057","event_type":"order.placed","schema_version":3,"aggregate_id":"o-1",` +
		`"timestamp":"2026-03-01T12:00:00.5Z","correlation_id":"co","causation_id":"ca","idempotency_key":"i","metadata":{"a":"1","b":"2"},"data":{ "b":"<&>" },"z":0}`
	if got := string(must(e.Encode())); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := string(must(e.AppendTo([]byte("before ")))); got != "before "+want {
		t.Errorf("AppendTo gave %s", got)
	}
}
