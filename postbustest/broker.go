package postbustest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// Broker stands for the broker behind a relay, in memory: it remembers what it
// accepts, in order, and fails as [Broker.On] tells it. It is a message.Publisher
// and an [outbox.BatchPublisher], and a [Source] of what it has accepted.
//
// The zero value accepts everything. It is safe for use by several goroutines and
// must not be copied.
type Broker struct {
	mu       sync.Mutex
	accepted []outbox.Message
	rules    []*Rule
	closed   bool
	changes  changes
}

var (
	_ message.Publisher     = (*Broker)(nil)
	_ outbox.BatchPublisher = (*Broker)(nil)
	_ Source                = (*Broker)(nil)
)

var errClosed = errors.New("the test's broker was closed: close it after the relay's Run has returned")

// PublishBatch is what a relay calls. It takes the messages one after another;
// behind the first of a key that is not accepted, the key's others are not
// attempted.
func (b *Broker) PublishBatch(ctx context.Context, msgs []*outbox.Message, results []outbox.Result) {
	stopped := map[string]bool{}
	for i, m := range msgs {
		if stopped[m.Key] || ctx.Err() != nil {
			continue
		}
		results[i] = b.take(ctx, m)
		stopped[m.Key] = results[i].Status != outbox.Done
	}
}

// BatchContract promises that a key stops at its first failure, and no bounds.
func (b *Broker) BatchContract() outbox.BatchContract {
	return outbox.BatchContract{StopsKeyAtFirstFailure: true}
}

// Publish is the call of a publisher without batches: it stops at the first
// message that is not accepted, and gives its error. Of a fault's status only
// ErrPermanent and ErrUnavailable can be told from an error.
func (b *Broker) Publish(topic string, msgs ...*message.Message) error {
	for _, w := range msgs {
		m, err := fromWatermill(topic, w)
		if err != nil {
			return err
		}
		if r := b.take(w.Context(), m); r.Status != outbox.Done {
			return r.Err
		}
	}
	return nil
}

// Close has the broker refuse everything from now on; what it has accepted stays.
func (b *Broker) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

// Stock gives the same broker without its batch call, as any publisher of
// Watermill's is: a relay then sends it one message at a time.
func (b *Broker) Stock() message.Publisher { return stock{b} }

type stock struct{ broker *Broker }

func (s stock) Publish(topic string, msgs ...*message.Message) error {
	return s.broker.Publish(topic, msgs...)
}
func (s stock) Close() error { return s.broker.Close() }

// Messages are those accepted so far, in the order of their acceptance, repeats
// included. They are the caller's own copies.
func (b *Broker) Messages() []outbox.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return cloneAll(b.accepted)
}

// WaitFor waits until n messages have been accepted and gives all there are then.
// It fails the test if they do not come within ten seconds, or within [Within].
func (b *Broker) WaitFor(t testing.TB, n int, opts ...WaitOption) []outbox.Message {
	t.Helper()
	var got []outbox.Message
	enough := func() bool {
		got = b.Messages()
		return len(got) >= n
	}
	if limit, ok := b.changes.wait(enough, opts); !ok {
		t.Fatalf("wait for %d messages: the broker has accepted %d within %s%s%s", n, len(got), limit, listMessages(got), b.tellRules())
	}
	return got
}

// take decides on one message, and remembers it if it is accepted.
func (b *Broker) take(ctx context.Context, m *outbox.Message) outbox.Result {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return outbox.Result{Status: outbox.Passing, Err: errClosed}
	}
	rule := b.ruleFor(m)
	b.mu.Unlock()
	if rule == nil {
		b.accept(m)
		return outbox.Result{Status: outbox.Done}
	}
	b.changes.tell()
	accepts, result := rule.fault.play(ctx, rule.stopped)
	if accepts {
		b.accept(m)
	}
	return result
}

func (b *Broker) accept(m *outbox.Message) {
	b.mu.Lock()
	b.accepted = append(b.accepted, clone(m)) // the relay's memory is its own
	b.mu.Unlock()
	b.changes.tell()
}

func (b *Broker) published(t testing.TB) []events.DomainEvent {
	t.Helper()
	msgs := b.Messages()
	all := make([]events.DomainEvent, 0, len(msgs))
	for _, m := range msgs {
		e, err := events.Decode(m.Payload)
		if err != nil {
			t.Fatalf("read message %s of topic %s: %v", m.EventID, m.Topic, err)
		}
		e.PartitionKey = m.Key
		all = append(all, e)
	}
	return all
}

func (b *Broker) place() string { return "accepted by the broker" }

func cloneAll(msgs []outbox.Message) []outbox.Message {
	out := make([]outbox.Message, len(msgs))
	for i := range msgs {
		out[i] = clone(&msgs[i])
	}
	return out
}

func clone(m *outbox.Message) outbox.Message {
	c := *m
	c.Payload, c.Headers = bytes.Clone(m.Payload), maps.Clone(m.Headers)
	return c
}

// fromWatermill reads back what outbox.Message.Watermill wrote.
func fromWatermill(topic string, w *message.Message) (*outbox.Message, error) {
	id, err := uuid.Parse(w.UUID)
	if err != nil {
		return nil, fmt.Errorf("publish to the test's broker: the message's UUID is %.80q: it takes messages of a relay, whose UUID is the event id", w.UUID)
	}
	m := &outbox.Message{EventID: id, Topic: topic, Payload: w.Payload}
	fixed := map[string]*string{
		events.HeaderEventType: &m.EventType, events.HeaderPartitionKey: &m.Key, events.HeaderContentType: &m.ContentType,
	}
	for name, value := range w.Metadata {
		switch into, isFixed := fixed[name]; {
		case isFixed:
			*into = value
		case name == events.HeaderSchemaVersion:
			m.SchemaVersion, _ = strconv.Atoi(value)
		case name == events.HeaderPosition:
			if i := strings.LastIndexByte(value, '/'); i >= 0 {
				m.Source = value[:i]
				m.LogID, _ = strconv.ParseInt(value[i+1:], 10, 64)
			}
		default:
			if m.Headers == nil {
				m.Headers = map[string]string{}
			}
			m.Headers[name] = value
		}
	}
	return m, nil
}

func listMessages(msgs []outbox.Message) string {
	lines := make([]string, len(msgs))
	for i, m := range msgs {
		lines[i] = fmt.Sprintf("%s v%d  key %q  id %s  topic %s", m.EventType, m.SchemaVersion, m.Key, m.EventID, m.Topic)
	}
	return list(lines)
}

// tellRules says what the rules have done, which may be why nothing comes.
func (b *Broker) tellRules() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []string
	for _, r := range slices.Backward(b.rules) {
		if r.hits > 0 {
			lines = append(lines, fmt.Sprintf("%s: %d times (%s)", r.fault.name, r.hits, r.when))
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return "\nits faults:" + list(lines)
}
