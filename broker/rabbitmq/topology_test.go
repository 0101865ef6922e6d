package rabbitmq

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

func TestDescribe(t *testing.T) {
	topology := Topology{
		Exchanges: []Exchange{{Name: "order"}, {Name: "events", Kind: Topic, Alternate: "order"}, {Name: "cmd", Kind: Direct}},
		Queues: []Queue{
			{Name: "order_billing", Bindings: []Binding{{Exchange: "order"}}, SingleActiveConsumer: true},
			{Name: "audit", Type: Classic, Bindings: []Binding{{"events", "#"}}, MaxLength: 1000, DeadLetter: DeadLetter{Queue: "audit_dead"}},
			{Name: "jobs", MaxLength: 10, Bindings: []Binding{{"cmd", "job"}}, DeadLetter: DeadLetter{Exchange: "order", RoutingKey: "k"}, DeliveryLimit: 3,
				Arguments: map[string]any{"x-quorum-initial-group-size": 3}},
		},
	}
	const want = `exchange "order": fanout, durable
exchange "events": topic, durable, alternate exchange "order"
exchange "cmd": direct, durable
queue "order_billing.dead": quorum, durable, x-delivery-limit=-1
queue "order_billing": quorum, durable, x-dead-letter-exchange="", x-dead-letter-routing-key=order_billing.dead, x-dead-letter-strategy=at-least-once, x-delivery-limit=20, x-overflow=reject-publish, x-single-active-consumer=true
  bound to exchange "order"
queue "audit_dead": classic, durable
queue "audit": classic, durable, x-dead-letter-exchange="", x-dead-letter-routing-key=audit_dead, x-max-length=1000, x-overflow=drop-head
  bound to exchange "events" by "#"
queue "jobs": quorum, durable, x-dead-letter-exchange=order, x-dead-letter-routing-key=k, x-dead-letter-strategy=at-least-once, x-delivery-limit=3, x-max-length=10, x-overflow=reject-publish, x-quorum-initial-group-size=3
  bound to exchange "cmd" by "job"
`
	if got := topology.Describe(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestTopologyFaults(t *testing.T) {
	fan := []Exchange{{Name: "f"}, {Name: "t", Kind: Topic}, {Name: "d", Kind: Direct}}
	for text, topology := range map[string]Topology{
		"the name \"\" is empty":         {Exchanges: []Exchange{{}}},
		"reserved for RabbitMQ":          {Queues: []Queue{{Name: "amq.gen"}}},
		"Fanout, Topic or Direct":        {Exchanges: []Exchange{{Name: "x", Kind: DefaultExchange}}},
		"\"f\" twice":                    {Exchanges: []Exchange{{Name: "f"}, {Name: "f"}}},
		"\"q\" twice":                    {Queues: []Queue{{Name: "q"}, {Name: "q"}}},
		"not in Topology.Exchanges":      {Queues: []Queue{{Name: "q", Bindings: []Binding{{Exchange: "x"}}}}},
		"which it ignores":               {Exchanges: fan, Queues: []Queue{{Name: "q", Bindings: []Binding{{"f", "k"}}}}},
		"fits no event":                  {Exchanges: fan, Queues: []Queue{{Name: "q", Bindings: []Binding{{"t", ""}}}}},
		"only quorum queues":             {Queues: []Queue{{Name: "q", Type: Classic, DeliveryLimit: 3}}},
		"DeliveryLimit -2":               {Queues: []Queue{{Name: "q", DeliveryLimit: -2}}},
		"negative MaxLength":             {Queues: []Queue{{Name: "q", MaxLength: -1}}},
		"but no MaxLength":               {Queues: []Queue{{Name: "q", Overflow: RejectPublish}}},
		"RejectBehindExchange":           {Exchanges: fan, Queues: []Queue{{Name: "q", MaxLength: 1, Overflow: RejectPublish, Bindings: []Binding{{Exchange: "f"}}}}},
		"copy in its other queues":       {Exchanges: fan, Queues: []Queue{{Name: "q", MaxLength: 1, Overflow: RejectPublish, Bindings: []Binding{{"t", "#"}}}}},
		"behind exchange \"d\"":          {Exchanges: fan, Queues: []Queue{{Name: "q", MaxLength: 1, Overflow: RejectPublish, Bindings: []Binding{{"d", "k"}}}, {Name: "r", Bindings: []Binding{{"d", "k"}}}}},
		"unread messages would be":       {Exchanges: fan, Queues: []Queue{{Name: "q", MaxLength: 1, NoDeadLetterLosesMessages: true, Bindings: []Binding{{Exchange: "f"}}}}},
		"x-message-ttl and x-expires":    {Queues: []Queue{{Name: "q", Arguments: map[string]any{"x-expires": 1}}}},
		"both DeadLetter and":            {Queues: []Queue{{Name: "q", NoDeadLetterLosesMessages: true, DeadLetter: DeadLetter{Queue: "x"}}}},
		"DeadLetter.Queue and DeadLette": {Queues: []Queue{{Name: "q", DeadLetter: DeadLetter{Queue: "x", Exchange: "y"}}}},
		"no DeadLetter.Exchange":         {Queues: []Queue{{Name: "q", DeadLetter: DeadLetter{RoutingKey: "x"}}}},
		"its own DeadLetter.Queue":       {Queues: []Queue{{Name: "q", DeadLetter: DeadLetter{Queue: "q"}}}},
		"Quorum or Classic":              {Queues: []Queue{{Name: "q", Type: 7}}},
	} {
		if _, faults := topology.compile(); len(faults) != 1 || !strings.Contains(faults[0].Error(), text) {
			t.Errorf("want one fault with %q, got %v", text, faults)
		}
		if got := topology.Describe(); !strings.Contains(got, text) {
			t.Errorf("Describe does not tell: %s", got)
		}
	}
	insisted := Topology{Exchanges: fan, Queues: []Queue{{Name: "q", MaxLength: 1, RejectBehindExchangeStopsEverybody: true, Bindings: []Binding{{Exchange: "f"}}}}}
	if got := insisted.Describe(); !strings.Contains(got, "x-overflow=reject-publish") {
		t.Error(got)
	}
}

// Declared twice is the same as once; what exists otherwise is told by the
// argument that differs; what is missing is told when creating is off.
func TestDeclareAndCheck(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	topology := Topology{
		Exchanges: []Exchange{{Name: name, Kind: Topic}},
		Queues: []Queue{
			{Name: name + "_a", Bindings: []Binding{{name, "order.#"}}, MaxLength: 1000},
			{Name: name + "_b", Type: Classic, MaxLength: 5},
		},
	}
	ctx := t.Context()
	err := Check(ctx, shared(t), topology)
	if n := strings.Count(fmt.Sprint(err), ErrMissing.Error()); !errors.Is(err, ErrMissing) || n != 5 {
		t.Errorf("%d are missing, want 5: %v", n, err)
	}
	checked := topology
	p := newPublisher(t, PublisherConfig{Topology: &checked, Kind: Topic, Exchange: name})
	if err := p.Ready(ctx); !errors.Is(err, ErrMissing) || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
	r := publishBatch(p, outboxMessage("t", "k", 0))[0]
	if r.Status != outbox.Passing || !errors.Is(r.Err, ErrMissing) {
		t.Error(r)
	}

	for range 2 {
		declare(t, topology)
	}
	if err := p.Ready(ctx); err != nil {
		t.Error(err)
	}
	allDone(t, publishBatch(p, outboxMessage("t", "k", 0)))
	if err := Check(ctx, shared(t), Topology{Exchanges: topology.Exchanges}); err != nil {
		t.Error(err)
	}

	for text, change := range map[string]func(*Topology){
		"its x-max-length is '1000', the topology says '7'": func(t *Topology) { t.Queues[0].MaxLength = 7 },
		"its x-queue-type is":                               func(t *Topology) { t.Queues[0].Type = Classic },
		"its type is":                                       func(t *Topology) { t.Exchanges[0].Kind, t.Queues[0].Bindings = Fanout, nil },
	} {
		other := Topology{Exchanges: []Exchange{topology.Exchanges[0]}, Queues: []Queue{topology.Queues[0]}}
		change(&other)
		if err := Declare(ctx, shared(t), other); !errors.Is(err, ErrMismatch) || !strings.Contains(fmt.Sprint(err), text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want %q, got %v", text, err)
		}
	}

	// The check names the full queue, that of the dead letters, and the lonely one.
	raw := admin(t, testkit.RabbitMQ(t))
	for queue, n := range map[string]int{name + "_b": 5, name + "_b.dead": 2} {
		for range n {
			if err := raw.Publish("", queue, true, false, amqp.Publishing{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	testkit.Eventually(t, patience, func() bool {
		err = Check(ctx, shared(t), topology)
		var full *FullError
		var dead *DeadLettersError
		var lonely *NoConsumerError
		return errors.As(err, &full) && full.Queue == name+"_b" && full.Messages == 5 && full.Overflow == RejectPublish &&
			errors.As(err, &dead) && dead.Queue == name+"_b.dead" && dead.Of == name+"_b" && dead.Messages == 2 &&
			errors.As(err, &lonely) && lonely.Queue == name+"_a"
	}, "the check to tell all three; it said: %v", err)
	if err := Check(ctx, ConnectionConfig{}, Topology{Exchanges: []Exchange{{}}}); !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), "URL") || !strings.Contains(err.Error(), "Exchanges") {
		t.Error(err)
	}
}

// A bound queue behind an exchange makes room by dead-lettering its oldest:
// nobody waits, and nothing is lost.
func TestFullQueueBehindExchangeDeadLetters(t *testing.T) {
	for _, typ := range []QueueType{Quorum, Classic} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			name := testkit.Name(t)
			declare(t, Topology{Exchanges: []Exchange{{Name: name}}, Queues: []Queue{
				{Name: name + "_full", Type: typ, MaxLength: 10, Bindings: []Binding{{Exchange: name}}},
				{Name: name + "_free", Type: typ, Bindings: []Binding{{Exchange: name}}},
			}})
			p := newPublisher(t, PublisherConfig{})
			allDone(t, publishBatch(p, outboxMessages(name, "k", 30)...))
			ch := admin(t, testkit.RabbitMQ(t))
			inOrder(t, drain(t, ch, name+"_free", 30))
			dead := drain(t, ch, name+"_full.dead", 20)
			inOrder(t, append(dead, drain(t, ch, name+"_full", 10)...))
		})
	}
}

// A publisher declares again what has gone when it connects anew.
func TestReconnectDeclaresAgain(t *testing.T) {
	noLeaks(t)
	name := testkit.Name(t)
	proxy := testkit.NewProxy(t, testkit.RabbitMQ(t))
	topology := declare(t, Topology{Declare: true, Exchanges: []Exchange{{Name: name}}, Queues: []Queue{{Name: name, Type: Classic, Bindings: []Binding{{Exchange: name}}}}})
	p := newPublisher(t, PublisherConfig{Topology: topology, Connection: ConnectionConfig{URL: proxy.URL()}})
	allDone(t, publishBatch(p, outboxMessage(name, "k", 0)))
	raw := admin(t, testkit.RabbitMQ(t))
	if _, err := raw.QueueDelete(name, false, false, false); err != nil {
		t.Fatal(err)
	}
	proxy.CutAll()
	testkit.Eventually(t, patience, func() bool { return publishBatch(p, outboxMessage(name, "k", 0))[0].Status == outbox.Done }, "the publisher to be back")
	drain(t, raw, name, 1)
	if err := raw.ExchangeDelete(name, false, false); err != nil { // and when it learns that something has gone
		t.Fatal(err)
	}
	if r := publishBatch(p, outboxMessage(name, "k", 0))[0]; !errors.Is(r.Err, ErrMissing) {
		t.Error(r)
	}
	allDone(t, publishBatch(p, outboxMessage(name, "k", 0)))
	drain(t, raw, name, 1)
}

func TestVersion(t *testing.T) {
	for text, want := range map[string]version{"3.10.8": {3, 10}, "4.1.0-rc.1": {4, 1}, "": serverNow, "x": serverNow} {
		if got := versionOf(amqp.Table{"version": text}); got != want {
			t.Errorf("%q is %v", text, got)
		}
	}
	q := Queue{Name: "q", DeliveryLimit: 20, DeadLetter: DeadLetter{Queue: "d"}}
	if args := q.arguments(version{3, 7}); args["x-queue-type"] != nil || args["x-delivery-limit"] != nil {
		t.Errorf("before there were quorum queues: %v", args)
	}
	if args := q.arguments(version{3, 9}); args["x-dead-letter-strategy"] != nil || args["x-queue-type"] != "quorum" {
		t.Errorf("before there was at-least-once: %v", args)
	}
}
