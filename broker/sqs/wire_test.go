package sqs

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"pgregory.net/rapid"

	"github.com/postbus/postbus/events"
)

// asSQS is an entry as SQS would hand it out.
func asSQS(e entry) *types.Message {
	m := &types.Message{MessageId: aws.String("id"), Body: &e.body, MessageAttributes: map[string]types.MessageAttributeValue{}}
	for _, a := range e.attributes {
		m.MessageAttributes[a.name] = types.MessageAttributeValue{DataType: aws.String(dataType), StringValue: &a.value}
	}
	return m
}

// Whatever UUID, payload and headers: what is written is within SQS' rules, and
// comes out as it went in; or it is refused, which only what is no UTF-8 is.
func TestEncodeDecode(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := message.NewMessage(rapid.StringMatching(`[a-z0-9-]{0,40}`).Draw(t, "uuid"), rapid.SliceOf(rapid.Byte()).Draw(t, "payload"))
		name := rapid.OneOf(rapid.String(), rapid.StringMatching(`[A-Za-z0-9_.-]{1,20}`),
			rapid.SampledFrom([]string{events.HeaderEventType, events.HeaderPartitionKey, events.HeaderTraceParent, "aws.x", "a..b", ".a"}))
		m.Metadata = rapid.MapOfN(name, rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z]{1,9}`)), 0, 20).Draw(t, "metadata")
		e, fault := encode(watermillMessages{"q", []*message.Message{m}}, 0, false)
		if fault != "" {
			for name, value := range m.Metadata {
				if !utf8.ValidString(name+value) || strings.ContainsAny(name+value, "\uFFFE\uFFFF") {
					return
				}
			}
			t.Fatalf("refused: %s", fault)
		}
		if len(e.attributes) > maxAttributes || !isText(e.body) || e.body == "" {
			t.Fatalf("%d attributes, body %q", len(e.attributes), e.body)
		}
		size := len(e.body)
		for _, a := range e.attributes {
			if a.value == "" || !isText(a.value) || !isAttributeName(a.name) {
				t.Fatalf("attribute %q is %q", a.name, a.value)
			}
			size += len(a.name) + len("String") + len(a.value)
		}
		if size != e.bytes {
			t.Fatalf("%d bytes, and it says %d", size, e.bytes)
		}
		got, err := decode(asSQS(e))
		if err != nil {
			t.Fatal(err)
		}
		if m.UUID == "" {
			m.UUID = "id" // SQS' own
		}
		if got.UUID != m.UUID || !bytes.Equal(got.Payload, m.Payload) || !maps.Equal(got.Metadata, m.Metadata) {
			t.Fatalf("got %q %q %q", got.UUID, got.Payload, got.Metadata)
		}
	})
}

// Routing and tracing headers are attributes of their own, however many others
// there are: filters and the stock subscriber see them.
func TestRoutingHeadersStayAttributes(t *testing.T) {
	t.Parallel()
	m := outboxMessage("q", "k", 1)
	m.Payload = []byte{0}
	m.Headers = map[string]string{events.HeaderTraceParent: "a", events.HeaderTraceState: "b", events.HeaderReplayed: "true"}
	e, fault := encode(relayMessages{m}, 0, true)
	if fault != "" || len(e.attributes) != 10 {
		t.Fatal(fault, e.attributes)
	}
	for i := range 5 {
		m.Headers[fmt.Sprint("more", i)] = "x"
	}
	e, _ = encode(relayMessages{m}, 0, true)
	seen := map[string]bool{}
	for _, a := range e.attributes {
		seen[a.name] = true
	}
	for _, name := range []string{attrUUID, attrEncoding, attrMetadata, events.HeaderEventType, events.HeaderSchemaVersion, events.HeaderPartitionKey,
		events.HeaderContentType, events.HeaderPosition, events.HeaderTraceParent, events.HeaderTraceState} {
		if !seen[name] {
			t.Errorf("%s is no attribute: %v", name, seen)
		}
	}
	if len(e.attributes) != 10 || e.group != "k" || e.dedup == m.EventID.String() {
		t.Errorf("%d attributes, group %s, deduplication id %s", len(e.attributes), e.group, e.dedup)
	}
	for name, value := range map[string]string{attrUUID: "x", attrEncoding: "x", attrMetadata: "x", "bad": "\xff"} {
		bad := message.NewMessage("1", nil)
		bad.Metadata[name] = value
		if _, fault := encode(watermillMessages{"q", []*message.Message{bad}}, 0, false); fault == "" {
			t.Errorf("%s = %q is taken", name, value)
		}
	}
}

// What comes from a queue may have been sent by anybody.
func FuzzDecode(f *testing.F) {
	f.Add("body", "base64", "{}", "n", "v", []byte{1})
	f.Add("", "", "", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, body, encoding, packed, name, value string, binary []byte) {
		str := func(s string) types.MessageAttributeValue { return types.MessageAttributeValue{StringValue: &s} }
		m := types.Message{Body: &body, MessageAttributes: map[string]types.MessageAttributeValue{
			attrEncoding: str(encoding), attrMetadata: str(packed), name: str(value), "b": {BinaryValue: binary}, "nothing": {}}}
		msg := (&received{raw: m, receives: 1}).build("q")
		if msg == nil || msg.Metadata[HeaderDeliveryCount] != "1" || msg.Metadata[HeaderQueue] != "q" {
			t.Fatalf("got %v", msg)
		}
	})
}
