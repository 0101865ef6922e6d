package brokertest

import (
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/outbox"
)

// Exchange puts the publisher of one and the subscriber of the other on the two sides of the
// same server: what one writes the other must read, alone and under the outbox relay. Nothing
// here is declared: it works, or the two do not speak the same format.
func Exchange(t *testing.T, from, to Broker) {
	b := to.withDefaults(t)
	b.Name = from.Name + " to " + to.Name
	b.Publisher, b.Capabilities.HoldsBack = from.Publisher, from.Capabilities.HoldsBack
	b.Idle = append(append([]string{}, from.Idle...), to.Idle...)
	if from.Capabilities.OrderPerKey != Yes {
		b.Capabilities.OrderPerKey = NotAssured
	}
	for name, measure := range map[string]func(*room) (string, error){"events": exchange, "relay": underRelay} {
		t.Run(name, func(t *testing.T) {
			figures, err := measure(newRoom(t, b))
			if err != nil {
				t.Errorf("%s: %v (%s)", b.Name, err, figures)
			}
			t.Log(figures)
		})
	}
}

// exchange publishes events as a relay does, and compares all of them.
func exchange(r *room) (string, error) {
	topic := r.topic()
	p := r.publisher()
	l := newLedger()
	handle := l.handler(0)
	var c collector
	if _, err := r.consume(topic, func(m *message.Message) {
		c.mu.Lock()
		c.msgs = append(c.msgs, m)
		c.mu.Unlock()
		handle(m)
	}); err != nil {
		return "", err
	}
	const keys, each = 10, 10
	var msgs []*outbox.Message
	for n := 1; n <= each; n++ {
		for k := range keys {
			m := numbered(topic, fmt.Sprintf("key-%d", k), n, 600)
			m.Headers = map[string]string{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
			msgs = append(msgs, m)
		}
	}
	results, err := send(p, msgs, stuckAfter)
	if err != nil {
		return "", fmt.Errorf("publish: %w", err)
	}
	for i, result := range results {
		if result.Status != outbox.Done {
			return "", fmt.Errorf("publish message %d: %s: %w", i, result.Status, result.Err)
		}
	}
	if err := until(r.b.Patience, func() bool { return l.done() == len(msgs) }, "all messages to come; %d of %d have", l.done, len(msgs)); err != nil {
		return "", err
	}
	for _, m := range msgs {
		want, got := m.Watermill(), c.find(m.EventID.String())
		if got == nil {
			return "", fmt.Errorf("message %s came under another id", want.UUID)
		}
		if string(got.Payload) != string(want.Payload) {
			return "", fmt.Errorf("the payload %q became %q", head(want.Payload), head(got.Payload))
		}
		for k, v := range want.Metadata {
			if got.Metadata[k] != v {
				return "", fmt.Errorf("header %q with %q became %q", k, v, got.Metadata[k])
			}
		}
	}
	if err := l.order(); err != nil && r.b.Capabilities.OrderPerKey == Yes {
		return "", err
	}
	return figuresOf("%d events, %d repeats", len(msgs), l.repeated()), nil
}
