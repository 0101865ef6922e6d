package brokertest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// payloads: what goes in comes out.
func payloads(r *room) (string, error) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	largest := make([]byte, r.b.LargestPayload)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(largest)
	var msgs []*message.Message
	for _, payload := range [][]byte{nil, {0}, all, []byte("\xff\xfe not UTF-8 \x80"), []byte(`{ "a" : "<&>\u2028  é" }` + "\n"),
		[]byte("Überraschung 🎉 \u0000"), []byte(" \t\r\n"), largest} {
		m := message.NewMessage(watermill.NewUUID(), payload)
		m.Metadata[events.HeaderPartitionKey] = "key"
		msgs = append(msgs, m)
	}
	got, err := r.roundTrip(msgs)
	for i, m := range msgs {
		if err == nil && !bytes.Equal(got[i].Payload, m.Payload) {
			err = fmt.Errorf("%d bytes went in, %d others came out: %q became %q", len(m.Payload), len(got[i].Payload), head(m.Payload), head(got[i].Payload))
		}
	}
	return figuresOf("%d payloads, 0 to %d bytes", len(msgs), len(largest)), err
}

func head(b []byte) []byte { return b[:min(len(b), 40)] }

// headers: those the message was given, with their names and values; a subscriber may add its own.
func headers(r *room) (string, error) {
	msgs := []*message.Message{}
	many := map[string]string{}
	for i := range 20 {
		many[fmt.Sprintf("header_%d", i)] = fmt.Sprintf("value %d", i)
	}
	for _, metadata := range []map[string]string{
		{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "empty": "", "long": strings.Repeat("0123456789", 100)},
		{"With-Dash": "a", "with.dot": "b", "with_underline": "c", "CamelCase": "d", "x": " spaces around "},
		{"value": "Zürich, 東京, 🎉", "quotes": `"a" 'b' \c`, "lines": "one\ntwo"},
		{"größe": "name in UTF-8", "with space": "e"},
		many,
	} {
		m := message.NewMessage(watermill.NewUUID(), []byte(`{"n":1}`))
		for k, v := range metadata {
			m.Metadata[k] = v
		}
		m.Metadata[events.HeaderPartitionKey] = "key"
		msgs = append(msgs, m)
	}
	got, err := r.roundTrip(msgs)
	n := 0
	for i, m := range msgs {
		for k, v := range m.Metadata {
			n++
			if err != nil {
				break
			}
			if is, ok := got[i].Metadata[k]; !ok || is != v {
				err = fmt.Errorf("header %q with %q became %q (there: %v)", k, v, is, ok)
			}
		}
	}
	return figuresOf("%d headers", n), err
}

// roundTrip publishes each message by itself and gives what came out, in the same order.
func (r *room) roundTrip(msgs []*message.Message) ([]*message.Message, error) {
	topic := r.topic()
	p := r.publisher()
	var c collector
	if _, err := r.consume(topic, c.handle); err != nil {
		return nil, err
	}
	for i, m := range msgs {
		if err := call(stuckAfter, func() error { return p.Publish(topic, m.Copy()) }); err != nil {
			return nil, fmt.Errorf("publish message %d: %w", i, err)
		}
	}
	got := make([]*message.Message, len(msgs))
	for i, m := range msgs {
		if err := until(r.b.Patience, func() bool { got[i] = c.find(m.UUID); return got[i] != nil },
			"message %d with %d bytes to come; %d have come", i, len(m.Payload), c.count); err != nil {
			return nil, err
		}
	}
	return got, nil
}

// foreignEntry: it comes as a message that says what it is, and those behind it come.
func foreignEntry(r *room) (string, error) {
	if r.b.Foreign == nil {
		return "", fmt.Errorf("the suite has no foreign entry for it")
	}
	topic := r.topic()
	p := r.publisher()
	l := newLedger()
	handle := l.handler(0)
	var strange collector
	if _, err := r.consume(topic, func(m *message.Message) {
		if _, _, ok := identify(m); !ok {
			strange.handle(m)
			return
		}
		handle(m)
	}); err != nil {
		return "", err
	}
	sendOne := func(n int) error {
		results, err := send(p, []*outbox.Message{numbered(topic, "key", n, 0)}, callTimeout)
		if err == nil && results[0].Status != outbox.Done {
			err = results[0].Err
		}
		if err != nil {
			err = fmt.Errorf("publish message %d: %w", n, err)
		}
		return err
	}
	if err := sendOne(1); err != nil {
		return "", err
	}
	r.b.Foreign(r.t, r.address, topic)
	for n := 2; n <= 10; n++ {
		if err := sendOne(n); err != nil {
			return "", err
		}
	}
	began := time.Now()
	if err := until(quickly, func() bool { return l.done() == 10 }, "those behind the foreign entry to be handled; %d of 10 were", l.done); err != nil {
		return "", err
	}
	behind := time.Since(began)
	if err := until(quickly, func() bool { return len(strange.all()) > 0 }, "the foreign entry to be handed on"); err != nil {
		return "", err
	}
	return figuresOf("9 behind it handled after %s", behind.Round(time.Millisecond)), nil
}
