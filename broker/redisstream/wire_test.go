package redisstream

import (
	"bytes"
	"context"
	"maps"
	"strconv"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/vmihailenco/msgpack/v5"
	"pgregory.net/rapid"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestStockSubscriberReadsOurs(t *testing.T) {
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	p := newPublisher(t, PublisherConfig{Client: c})
	msgs := outboxMessages(stream, "k", 3)
	msgs[1].Headers = map[string]string{"traceparent": strings.Repeat("x", 70000), "tracestate": ""}
	if got := statuses(publishBatch(p, context.Background(), msgs)); got != "DDD" {
		t.Fatal("results are " + got)
	}
	plain := message.NewMessage("no metadata", []byte("\x00\xff"))
	if err := p.Publish(stream, plain); err != nil {
		t.Fatal(err)
	}
	// The stock subscriber closes its client.
	theirs, err := stock.NewSubscriber(stock.SubscriberConfig{Client: testkit.Redis(t), ConsumerGroup: "group"}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	ch, err := theirs.Subscribe(context.Background(), stream)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []*message.Message{msgs[0].Watermill(), msgs[1].Watermill(), msgs[2].Watermill(), plain} {
		m := receive(t, ch)
		if !m.Equals(want) {
			t.Errorf("message %d is %s %v %q, want %s %v %q", i, m.UUID, m.Metadata, m.Payload, want.UUID, want.Metadata, want.Payload)
		}
		m.Ack()
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWeReadStockPublishers(t *testing.T) {
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	theirs, err := stock.NewPublisher(stock.PublisherConfig{Client: testkit.Redis(t)}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	var sent []*message.Message
	for n := range 20 {
		m := message.NewMessage("id "+strconv.Itoa(n), bytes.Repeat([]byte{byte(n)}, n*1000))
		for i := range n {
			m.Metadata["name "+strings.Repeat("n", i*20)] = strings.Repeat("v", i*5000)
		}
		sent = append(sent, m)
	}
	if err := theirs.Publish(stream, sent...); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	ch := subscribe(t, newSubscriber(t, SubscriberConfig{Client: c}), stream)
	for i, want := range sent {
		m := receive(t, ch)
		for _, ours := range []string{HeaderDeliveryCount, HeaderStream, HeaderEntryID} {
			if m.Metadata[ours] == "" {
				t.Errorf("message %d lacks %s", i, ours)
			}
			delete(m.Metadata, ours)
		}
		if !m.Equals(want) {
			t.Errorf("message %d is %s %v, want %s %v", i, m.UUID, m.Metadata, want.UUID, want.Metadata)
		}
		m.Ack()
	}
}

// What we write, msgpack reads, and the other way round; and the headers of a
// relay's message are those of outbox.Message.Watermill.
func TestMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "metadata")
		ours := watermillMessages{"s", []*message.Message{{Metadata: want}}}.appendMetadata(nil, 0)
		if len(want) == 0 {
			if len(ours) != 0 {
				t.Fatalf("no metadata is written as %x", ours)
			}
			return
		}
		var got map[string]string
		if err := msgpack.Unmarshal(ours, &got); err != nil || !maps.Equal(got, want) {
			t.Fatalf("msgpack reads %v, %v; want %v", got, err, want)
		}
		theirs, err := msgpack.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err = decodeStringMap(theirs); err != nil || !maps.Equal(got, want) {
			t.Fatalf("we read %v, %v; want %v", got, err, want)
		}

		m := &outbox.Message{LogID: rapid.Int64().Draw(t, "log id"), EventType: rapid.String().Draw(t, "type"),
			SchemaVersion: rapid.Int().Draw(t, "version"), Key: rapid.String().Draw(t, "key"),
			ContentType: rapid.String().Draw(t, "content type"), Source: rapid.String().Draw(t, "source"), Headers: want}
		got, err = decodeStringMap(relayMessages{m}.appendMetadata(nil, 0))
		if err != nil || !maps.Equal(got, m.Watermill().Metadata) {
			t.Fatalf("a relay's headers are %v, %v; want %v", got, err, m.Watermill().Metadata)
		}
		if size := (relayMessages{m}).size(0); size < mapSize(got) {
			t.Fatalf("size %d is less than that of the headers, %d", size, mapSize(got))
		}
	})
}

func mapSize(m map[string]string) (n int) {
	for k, v := range m {
		n += len(k) + len(v)
	}
	return n
}

func TestAppendUUID(t *testing.T) {
	m := outboxMessage("t", "k", 1)
	if got := string(appendUUID(nil, m.EventID)); got != m.EventID.String() {
		t.Errorf("got %s, want %s", got, m.EventID)
	}
}

// A stranger's entry never makes us panic or allocate beyond its size, and
// always becomes a message.
func FuzzDecode(f *testing.F) {
	f.Add("id", "payload", []byte{0x81, 0xa1, 'a', 0xa1, 'b'})
	f.Add("", "", []byte{0xdf, 0xff, 0xff, 0xff, 0xff})
	f.Add("\xff", "\x00", []byte{0x81, 0xdb, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, id, payload string, metadata []byte) {
		s := &subscription{stream: "s"}
		msg := s.message(&entry{id: "1-1", values: map[string]any{fieldUUID: id, fieldPayload: payload, fieldMetadata: string(metadata)}}, 1)
		if msg.Metadata[HeaderUndecodable] == "" && (msg.UUID != id || string(msg.Payload) != payload) {
			t.Errorf("message is %s %q", msg.UUID, msg.Payload)
		}
		if m, err := decodeStringMap(metadata); err == nil {
			var want map[string]string
			if err := msgpack.Unmarshal(metadata, &want); err != nil || !maps.Equal(m, want) {
				t.Errorf("we read %v, msgpack reads %v, %v", m, want, err)
			}
		}
	})
}

func TestJudge(t *testing.T) {
	for reply, want := range map[string]outbox.Status{
		"OOM command not allowed when used memory > 'maxmemory'.":                        outbox.Passing,
		"@user_script:1: -OOM command not allowed when used memory > 'maxmemory'.":       outbox.Passing,
		"-READONLY You can't write against a read only replica.":                         outbox.Passing,
		"WRONGTYPE Operation against a key holding the wrong kind of value":              outbox.Permanent,
		"ERR The user executing the script can't run this command or subcommand":         outbox.Permanent,
		"NOPERM this user has no permissions to access one of the keys used as argument": outbox.Permanent,
	} {
		if v, known := judge(reply); !known || v.status != want {
			t.Errorf("%q is judged %v %v, want %v", reply, v.status, known, want)
		}
	}
	if v, known := judge("ERR something new"); known || v.status != outbox.Passing || v.kind != nil {
		t.Errorf("an unknown reply is judged %+v", v)
	}
}

func TestIDs(t *testing.T) {
	for _, tt := range []struct{ id, before string }{{"5-3", "5-2"}, {"5-0", "4-18446744073709551615"}, {"0-0", "0-0"}} {
		if got := before(tt.id); got != tt.before {
			t.Errorf("before %s is %s, want %s", tt.id, got, tt.before)
		}
	}
	if !idLess("9-5", "10-1") || idLess("10-1", "10-1") || !idLess("10-1", "10-2") {
		t.Error("ids are not compared by number")
	}
}
