package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestPublishBatch(t *testing.T) {
	for _, typ := range []QueueType{Quorum, Classic} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, Type: typ}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			var msgs []*outbox.Message
			for n := range 12 {
				for k := range 10 {
					msgs = append(msgs, outboxMessage(q, fmt.Sprint("key ", k), n))
				}
			}
			for range 3 { // over the same channel
				allDone(t, publishBatch(p, msgs...))
				inOrder(t, drain(t, admin(t, testkit.RabbitMQ(t)), q, len(msgs)))
			}
		})
	}
}

// inOrder checks that each key's payloads count up from 0.
func inOrder(t testing.TB, got []amqp.Delivery) {
	t.Helper()
	next := make(map[string]int)
	for _, d := range got {
		key, _ := d.Headers["partition_key"].(string)
		if want := fmt.Sprintf(`{"key":%q,"n":%d}`, key, next[key]); string(d.Body) != want {
			t.Fatalf("got %s of key %q, want %s", d.Body, key, want)
		}
		next[key]++
	}
}

// What is on the wire is what watermill-amqp's DefaultMarshaler reads: strings
// in the headers, and the UUID among them.
func TestWireFormat(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}}) // a quorum queue adds x-delivery-count
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	m := outboxMessage(q, "käy", 7)
	m.Headers = map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "empty": ""}
	m.Payload = []byte{0, 1, 0xff, '\n'}
	allDone(t, publishBatch(p, m))
	got := drain(t, admin(t, testkit.RabbitMQ(t)), q, 1)[0]
	want := amqp.Table{
		"_watermill_message_uuid": m.EventID.String(), "event_type": "order.placed", "schema_version": "2",
		"partition_key": "käy", "content_type": "application/json", "postbus_position": "shop/1/7",
		"traceparent": m.Headers["traceparent"], "empty": "",
	}
	if fmt.Sprint(got.Headers) != fmt.Sprint(want) {
		t.Errorf("headers %v, want %v", got.Headers, want)
	}
	if string(got.Body) != string(m.Payload) {
		t.Errorf("body %q, want %q", got.Body, m.Payload)
	}
	if got.MessageId != m.EventID.String() || got.DeliveryMode != amqp.Persistent || got.ContentType != "application/json" ||
		got.Type != "order.placed" || got.RoutingKey != q {
		t.Errorf("properties %+v", got)
	}
	if age := time.Since(got.Timestamp); age < 0 || age > time.Minute {
		t.Errorf("timestamp %s is not that of the event", got.Timestamp)
	}
}

// Fanout, topic and direct exchanges, by event type and by partition key.
func TestRouting(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	ex := func(k Kind) string { return name + "_" + k.String() }
	topology := Topology{
		Exchanges: []Exchange{{Name: ex(Fanout)}, {Name: ex(Topic), Kind: Topic}, {Name: ex(Direct), Kind: Direct}},
		Queues: []Queue{
			{Name: name + "_all", Type: Classic, Bindings: []Binding{{Exchange: ex(Fanout)}}},
			{Name: name + "_orders", Type: Classic, Bindings: []Binding{{ex(Topic), "order.#"}, {Exchange: ex(Fanout)}}},
			{Name: name + "_k1", Type: Classic, Bindings: []Binding{{ex(Direct), "k1"}}},
		},
	}
	declare(t, topology)
	ch := admin(t, testkit.RabbitMQ(t))

	p := newPublisher(t, PublisherConfig{})
	allDone(t, publishBatch(p, outboxMessage(ex(Fanout), "k", 0)))
	drain(t, ch, name+"_all", 1)
	drain(t, ch, name+"_orders", 1)

	p = newPublisher(t, PublisherConfig{Kind: Topic, Exchange: ex(Topic)})
	other := outboxMessage("other topic", "k2", 0)
	other.EventType = "payment.made"
	results := publishBatch(p, outboxMessage("topic", "k1", 0), other)
	if results[0].Status != outbox.Done || !errors.Is(results[1].Err, ErrUnroutable) {
		t.Fatalf("results %v", results)
	}
	if got := drain(t, ch, name+"_orders", 1)[0]; got.RoutingKey != "order.placed" {
		t.Errorf("routing key %q", got.RoutingKey)
	}

	p = newPublisher(t, PublisherConfig{Kind: Direct, Exchange: ex(Direct), RoutingKey: ByPartitionKey})
	allDone(t, publishBatch(p, outboxMessage("any", "k1", 0)))
	drain(t, ch, name+"_k1", 1)

	p = newPublisher(t, PublisherConfig{Kind: Topic, Exchange: ex(Topic), RoutingKey: ByTopic})
	allDone(t, publishBatch(p, outboxMessage("order.x", "k1", 0)))
	drain(t, ch, name+"_orders", 1)
}

// Some keys have no queue: exactly their messages are told, each key stops at its
// first, and the others go through.
func TestUnroutableInTheMiddle(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	declare(t, Topology{
		Exchanges: []Exchange{{Name: name, Kind: Direct}},
		Queues:    []Queue{{Name: name, Bindings: []Binding{{name, "bound"}, {name, "too"}}}},
	})
	p := newPublisher(t, PublisherConfig{Kind: Direct, RoutingKey: ByPartitionKey})
	var msgs []*outbox.Message
	for n := range 50 {
		for _, key := range []string{"bound", "not", "too", "neither"} {
			msgs = append(msgs, outboxMessage(name, key, n))
		}
	}
	for i, r := range publishBatch(p, msgs...) {
		switch m := msgs[i]; {
		case m.Key == "bound" || m.Key == "too":
			if r.Status != outbox.Done {
				t.Fatalf("message %d of key %s: %s %v", i, m.Key, r.Status, r.Err)
			}
		case m.LogID == 0:
			var refused *RefusedError
			if r.Status != outbox.Permanent || !errors.Is(r.Err, ErrUnroutable) || !errors.Is(r.Err, outbox.ErrPermanent) || !errors.As(r.Err, &refused) {
				t.Fatalf("message %d of key %s: %s %v", i, m.Key, r.Status, r.Err)
			}
			if refused.MessageID != m.EventID.String() || refused.RoutingKey != m.Key || refused.Exchange != name {
				t.Fatalf("the error is about another message: %v", refused)
			}
		case r.Status != outbox.NotAttempted:
			t.Fatalf("message %d of key %s stands behind an unroutable one, and is %s", i, m.Key, r.Status)
		}
	}
	inOrder(t, drain(t, admin(t, testkit.RabbitMQ(t)), name, 100))
}

// One event twice in a batch, on different topics: the one without a queue is
// the one that is told.
func TestUnroutableTwinIsToldApart(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: name, Type: Classic, NoDeadLetterLosesMessages: true}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	a, b := outboxMessage(name, "k", 0), outboxMessage(name+"_no", "k", 0)
	b.EventID = a.EventID
	results := publishBatch(p, a, b, outboxMessage(name, "l", 0))
	if got := statuses(results); !slices.Equal(got, []outbox.Status{outbox.Done, outbox.Permanent, outbox.Done}) {
		t.Fatalf("results %v", results)
	}
}

// A full queue of its own refuses, drops nothing, and takes the rest when there is
// room: per key in order, however often that happens.
func TestRejectPublish(t *testing.T) {
	for _, typ := range []QueueType{Classic, Quorum} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, Type: typ, MaxLength: 10}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			ch := admin(t, testkit.RabbitMQ(t))
			var left []*outbox.Message
			for n := range 20 {
				for _, key := range []string{"a", "b", "c"} {
					left = append(left, outboxMessage(q, key, n))
				}
			}
			var got []amqp.Delivery
			refused := 0
			for rounds := 0; len(left) > 0; rounds++ {
				if rounds > 200 {
					t.Fatalf("%d messages are still refused", len(left))
				}
				results := publishBatch(p, left...)
				left = leftOver(t, left, results)
				for _, r := range results {
					if r.Err != nil {
						refused++
						if !errors.Is(r.Err, ErrNacked) || errors.Is(r.Err, outbox.ErrPermanent) || errors.Is(r.Err, outbox.ErrUnavailable) {
							t.Fatal(r.Err)
						}
					}
				}
				for range 4 {
					if d, ok, err := ch.Get(q, true); err != nil {
						t.Fatal(err)
					} else if ok {
						got = append(got, d)
					}
				}
			}
			if refused == 0 {
				t.Error("nothing was refused")
			}
			got = append(got, drain(t, ch, q, 60-len(got))...)
			inOrder(t, got)
		})
	}
}

// leftOver is what is not in the queue yet, and checks that no key has gone on
// after its first failure.
func leftOver(t testing.TB, msgs []*outbox.Message, results []outbox.Result) (left []*outbox.Message) {
	t.Helper()
	stopped := make(map[string]bool)
	for i, r := range results {
		switch {
		case r.Status == outbox.Done && stopped[msgs[i].Key]:
			t.Fatalf("key %s has gone on after a failure", msgs[i].Key)
		case r.Status != outbox.Done:
			if stopped[msgs[i].Key] && r.Status != outbox.NotAttempted {
				t.Fatalf("key %s has failed, and then a message is %s: %v", msgs[i].Key, r.Status, r.Err)
			}
			stopped[msgs[i].Key] = true
			left = append(left, msgs[i])
		}
	}
	return left
}

func TestMissingExchange(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	topology := Topology{Exchanges: []Exchange{{Name: name}}, Queues: []Queue{{Name: name, Bindings: []Binding{{Exchange: name}}}}}
	declare(t, topology)
	p := newPublisher(t, PublisherConfig{})
	msgs := []*outbox.Message{outboxMessage(name, "a", 0), outboxMessage(name+"_no", "a", 1), outboxMessage(name+"_no", "a", 2), outboxMessage(name, "b", 0)}
	results := publishBatch(p, msgs...)
	if got := statuses(results); !slices.Equal(got, []outbox.Status{outbox.Done, outbox.Permanent, outbox.NotAttempted, outbox.Done}) {
		t.Fatalf("results %v", results)
	}
	if err := results[1].Err; !errors.Is(err, ErrMissing) || !errors.Is(err, outbox.ErrPermanent) || !strings.Contains(err.Error(), name+"_no") {
		t.Fatal(err)
	}

	// It goes while the publisher is connected: the channel ends in the middle of
	// a batch, and the next call knows.
	if err := admin(t, testkit.RabbitMQ(t)).ExchangeDelete(name, false, false); err != nil {
		t.Fatal(err)
	}
	msgs = nil
	for i := range 50 {
		msgs = append(msgs, outboxMessage(name, fmt.Sprint("k", i), 0))
	}
	results = publishBatch(p, msgs...)
	if results[0].Status != outbox.Permanent || !errors.Is(results[0].Err, ErrMissing) {
		t.Fatalf("the first: %v", results[0])
	}
	for _, r := range results[1:] {
		if r.Status != outbox.NotAttempted {
			t.Fatalf("another one: %v", r)
		}
	}
	declareAt(t, shared(t), topology)
	allDone(t, publishBatch(p, msgs...))
}

func TestNoRightToPublish(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	declare(t, Topology{Exchanges: []Exchange{{Name: name}}})
	p := newPublisher(t, PublisherConfig{Connection: ConnectionConfig{URL: testkit.RabbitMQPowerless(t, testkit.RabbitMQ(t))}})
	msgs := []*outbox.Message{outboxMessage(name, "a", 0), outboxMessage(name, "b", 0)}
	for range 2 {
		results := publishBatch(p, msgs...)
		if got := statuses(results); !slices.Equal(got, []outbox.Status{outbox.Permanent, outbox.NotAttempted}) {
			t.Fatalf("results %v", results)
		}
		if err := results[0].Err; !strings.Contains(err.Error(), "refused for user") || !strings.Contains(err.Error(), "write permission") {
			t.Fatal(err)
		}
	}
}

func TestSizes(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}})
	var told lines
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange, MaxMessageBytes: 1 << 20, Logger: told.logger()})
	large, over, headers := outboxMessage(q, "a", 0), outboxMessage(q, "b", 0), outboxMessage(q, "c", 0)
	large.Payload = make([]byte, 1<<20-500)
	over.Payload = make([]byte, 1<<20)
	headers.Headers = map[string]string{"h": strings.Repeat("x", 130<<10)}
	fits := outboxMessage(q, "d", 0)
	fits.Headers = map[string]string{"h": strings.Repeat("x", 127<<10)}
	results := publishBatch(p, large, over, headers, fits, outboxMessage(q, "b", 1), outboxMessage(q, "e", 0))
	if got := statuses(results); !slices.Equal(got, []outbox.Status{outbox.Done, outbox.Permanent, outbox.Permanent, outbox.Done, outbox.NotAttempted, outbox.Done}) {
		t.Fatalf("results %v", results)
	}
	var tooLarge *TooLargeError
	if !errors.As(results[1].Err, &tooLarge) || tooLarge.Headers || tooLarge.MaxBytes != 1<<20 {
		t.Error(results[1].Err)
	}
	if !errors.As(results[2].Err, &tooLarge) || !tooLarge.Headers {
		t.Error(results[2].Err)
	}
	if n := told.count("larger than RabbitMQ is good at"); n != 1 {
		t.Errorf("the warning came %d times", n)
	}
	got := drain(t, admin(t, testkit.RabbitMQ(t)), q, 3)
	if len(got[0].Body) != len(large.Payload) {
		t.Errorf("the large message came with %d bytes", len(got[0].Body))
	}
}

func TestInvalidMessages(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	with := func(change func(*outbox.Message)) *outbox.Message {
		m := outboxMessage(q, "k", 0)
		change(m)
		return m
	}
	for name, m := range map[string]*outbox.Message{
		"is empty":              with(func(m *outbox.Message) { m.Topic = "" }),
		"reserved for RabbitMQ": with(func(m *outbox.Message) { m.Topic = "amq.direct" }),
		"AMQP has room for 255": with(func(m *outbox.Message) { m.Topic = strings.Repeat("x", 256) }),
		"control character":     with(func(m *outbox.Message) { m.Topic = "a\nb" }),
		"reserved for the":      with(func(m *outbox.Message) { m.Headers = map[string]string{headerUUID: "x"} }),
		"routing keys":          with(func(m *outbox.Message) { m.Headers = map[string]string{"CC": "x"} }),
		"shorten it":            with(func(m *outbox.Message) { m.Headers = map[string]string{strings.Repeat("x", 256): ""} }),
		"event type":            with(func(m *outbox.Message) { m.EventType = strings.Repeat("x", 256) }),
	} {
		r := publishBatch(p, m)[0]
		var invalid *InvalidMessageError
		if r.Status != outbox.Permanent || !errors.As(r.Err, &invalid) || !errors.Is(r.Err, outbox.ErrPermanent) || !strings.Contains(r.Err.Error(), name) {
			t.Errorf("%s: %s %v", name, r.Status, r.Err)
		}
	}
	allDone(t, publishBatch(p, outboxMessage(q, "k", 0))) // over the same connection
}

func TestPublish(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	if err := p.Publish(q); err != nil {
		t.Fatal(err)
	}
	a, b := message.NewMessage("id 1", []byte("1")), message.NewMessage("", nil)
	a.Metadata["x-death"], a.Metadata["x"] = "not ours to say", "y"
	if err := p.Publish(q, a, b); err != nil {
		t.Fatal(err)
	}
	got := drain(t, admin(t, testkit.RabbitMQ(t)), q, 2)
	if got[0].MessageId != "id 1" || fmt.Sprint(got[0].Headers) != fmt.Sprint(amqp.Table{headerUUID: "id 1", "x": "y"}) {
		t.Errorf("got %+v", got[0])
	}
	err := p.Publish(q+"_no", a, b, nil)
	var failed *PublishError
	if !errors.As(err, &failed) || !errors.Is(err, ErrUnroutable) || !errors.Is(err, outbox.ErrPermanent) || len(failed.Outcomes) != 3 {
		t.Fatal(err)
	}
	if failed.Outcomes[0].MessageID != "id 1" || failed.Outcomes[2].Status != outbox.Permanent {
		t.Errorf("outcomes %v", failed.Outcomes)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	a.SetContext(ctx)
	if err := p.Publish(q, a); !errors.Is(err, context.Canceled) || errors.Is(err, outbox.ErrUnavailable) {
		t.Fatal(err)
	}
}
