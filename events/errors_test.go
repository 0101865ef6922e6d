package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// An event in a log, or refused in an error, shows nothing of its data.
func TestLogsAndErrorsHoldNoData(t *testing.T) {
	const canary = "canary4711"
	e := must(New(t.Context(), With(order{OrderID: "o-1", Note: canary}, Metadata("k", canary), IdempotentBy(canary))))
	var out bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("event", "event", e, "typed", must(Typed[order](e)))
	}
	fmt.Fprintf(&out, "%v %s %+v %v", e, e, e, must(Typed[order](e)))
	bad := e
	bad.Data = json.RawMessage(`{"a":"` + canary + `"`)
	fmt.Fprintln(&out, bad.Validate())
	bad = e
	bad.AggregateID = canary + "\x00"
	fmt.Fprintln(&out, bad.Validate())
	bad = e
	bad.Metadata = map[string]string{"k": canary + "\x00"}
	fmt.Fprintln(&out, bad.Validate())
	_, err := Decode([]byte(`{"timestamp":"` + canary + `"}`))
	fmt.Fprintln(&out, err)
	if strings.Contains(out.String(), canary) {
		t.Errorf("data leaked:\n%s", out.String())
	}
	if !strings.Contains(out.String(), e.EventID.String()) || !strings.Contains(out.String(), "order.placed") {
		t.Errorf("the event is not named:\n%s", out.String())
	}
}

// The text says what was attempted on which event, what is wrong with what, and
// the way out, on one line, however hostile the input.
func TestErrorTexts(t *testing.T) {
	id := uuid.MustParse("01890a5d-ac96-774b-bcce-b302099a8057")
	e := must(New(t.Context(), With(sample, ID(id))))
	long := e
	long.AggregateID = strings.Repeat("x", 300)
	hostile := e
	hostile.EventType = "a\nb\x1b[31m" + strings.Repeat("é", 5000)
	for _, c := range []struct {
		err  error
		want string
	}{
		{long.Validate(), "events: cannot validate event order.placed 01890a5d-ac96-774b-bcce-b302099a8057: aggregate_id is 300 bytes long and the limit is 255: use a shorter id, for instance a hash of the long one"},
		{e.CheckSize(300_000, 0), "events: event order.placed 01890a5d-ac96-774b-bcce-b302099a8057 takes 300000 bytes and the limit is 262144: keep the bulk elsewhere and publish a reference to it"},
		{second(New(t.Context(), nil)), "events: cannot build an event from a payload of type nil: there is none: pass a value that implements events.Payload"},
		{second(Decode(nil)), "events: cannot decode an event of unknown type and id: document is not valid JSON: at byte 0 of the document an object should begin; something cut or changed it on its way, or another program wrote it"},
	} {
		if !strings.HasPrefix(c.err.Error(), c.want) {
			t.Errorf("got  %s\nwant %s", c.err, c.want)
		}
	}
	text := hostile.Validate().Error()
	if len(text) > 500 || strings.ContainsAny(text, "\n\x1b") {
		t.Errorf("%d bytes: %q", len(text), text)
	}
}

func TestErrorsKeepTheirCause(t *testing.T) {
	_, err := New(t.Context(), unencodable{})
	var cause *json.UnsupportedTypeError
	if !errors.As(err, &cause) || !errors.Is(err, ErrInvalidEvent) {
		t.Errorf("the cause is lost: %v", err)
	}
	e := sampleEvent()
	e.Data = json.RawMessage(`[]`)
	_, err = Typed[order](e)
	var mistyped *json.UnmarshalTypeError
	if !errors.As(err, &mistyped) || !errors.Is(err, ErrInvalidEvent) {
		t.Errorf("the cause is lost: %v", err)
	}
}
