package rabbitmq

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A Topology is what exchanges and queues a program needs. All of it is durable.
// Given to a Publisher or a Subscriber it is declared, or checked, on every new
// connection; Declare and Check do either by hand, and Describe prints it.
type Topology struct {
	// Declare creates what does not exist, and finds out whether what exists is as
	// it is given here. Without it things are only looked for, which needs no
	// rights, and can't see their properties.
	Declare bool

	Exchanges []Exchange
	Queues    []Queue
}

// An Exchange is durable and stays when nothing is bound to it.
type Exchange struct {
	Name string
	Kind Kind // Fanout, Topic or Direct

	// Alternate is an exchange that gets what no queue is bound for. Such a message
	// then counts as routed.
	Alternate string
}

// A Queue is durable, shared by all who consume from it, and stays when nobody
// does. The zero value of everything but Name is good.
type Queue struct {
	Name     string
	Type     QueueType
	Bindings []Binding

	// DeadLetter says where goes what consumers give up, what has come back more
	// often than DeliveryLimit, and what DeadLetterOldest takes out. Defaults to a
	// queue of this one's name and ".dead", of the same type, declared as well.
	DeadLetter DeadLetter
	// NoDeadLetterLosesMessages: without dead-lettering, all these are thrown away.
	NoDeadLetterLosesMessages bool

	// DeliveryLimit is how often a message may come back before it is dead-lettered,
	// by nacks and by consumers that go away while they have it. Quorum queues only.
	// Defaults to 20, as in RabbitMQ 4; -1 for no limit: RabbitMQ 3 then puts what
	// comes back at the end of the queue, out of order.
	DeliveryLimit int

	// SingleActiveConsumer has only one consumer at a time get messages, and the next
	// one take over when it goes: where order matters over several processes.
	SingleActiveConsumer bool

	// MaxLength bounds the messages that wait, MaxLengthBytes their payloads; 0 is no
	// bound. Overflow says what happens then.
	MaxLength      int
	MaxLengthBytes int
	Overflow       Overflow
	// RejectBehindExchangeStopsEverybody: RejectPublish on a queue behind an exchange that others
	// share. One full queue then makes the publisher repeat every message, and
	// each repeat is one more copy in the healthy queues.
	RejectBehindExchangeStopsEverybody bool

	// Arguments are further ones ("x-queue-mode", "x-quorum-initial-group-size" ...).
	Arguments map[string]any
}

// A Binding has an exchange put messages into the queue. Key is a pattern for a
// Topic exchange ("order.#"; "#" is all), the exact routing key for a Direct one,
// and nothing for a Fanout.
type Binding struct {
	Exchange string
	Key      string
}

// DeadLetter says where given-up messages go. Give Queue, or Exchange.
type DeadLetter struct {
	// Queue gets them directly, and is declared.
	Queue string
	// Exchange gets them, with RoutingKey, or their own if that is empty. It
	// and the queues behind it are the topology's to name, or somebody else's.
	Exchange   string
	RoutingKey string
}

// QueueType is how a queue is kept.
type QueueType int

const (
	// Quorum: replicated and fsynced before a message is confirmed. Where the server
	// has none (before RabbitMQ 3.8), Classic.
	Quorum QueueType = iota
	// Classic: on one node.
	Classic
)

func (t QueueType) String() string {
	switch t {
	case Quorum:
		return "quorum"
	case Classic:
		return "classic"
	}
	return fmt.Sprintf("QueueType(%d)", int(t))
}

// Overflow says what happens to a message that finds a queue full.
type Overflow int

const (
	// OverflowByPlace: RejectPublish for a queue of its own (no binding, or alone with
	// its key at a Direct exchange), else DeadLetterOldest.
	OverflowByPlace Overflow = iota
	// RejectPublish: it is refused (ErrNacked), and the publisher tries again:
	// a relay waits, and nothing is dropped.
	RejectPublish
	// DeadLetterOldest: the oldest message is dead-lettered to make room.
	DeadLetterOldest
)

func (o Overflow) String() string {
	switch o {
	case OverflowByPlace:
		return "by place"
	case RejectPublish:
		return "reject-publish"
	case DeadLetterOldest:
		return "dead-letter the oldest"
	}
	return fmt.Sprintf("Overflow(%d)", int(o))
}

const (
	defaultDeliveryLimit = 20
	deadSuffix           = ".dead"
)

// ownArguments have fields of their own; the last two would throw away what
// nobody has read.
var ownArguments = []string{"x-queue-type", "x-delivery-limit", "x-single-active-consumer", "x-max-length",
	"x-max-length-bytes", "x-overflow", "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy",
	"x-message-ttl", "x-expires"}

// A topology is a Topology that was found sound, with the defaults filled in.
type topology struct {
	declare   bool
	exchanges []Exchange
	queues    []Queue // dead-letter queues before those whose they are
}

// compile finds all faults. A nil Topology is fine, and so is its result.
func (t *Topology) compile() (*topology, []error) {
	if t == nil {
		return nil, nil
	}
	c := compiler{out: &topology{declare: t.Declare}, kinds: make(map[string]Kind), taken: make(map[string]bool), shared: make(map[Binding]int)}
	for _, e := range t.Exchanges {
		c.exchange(e)
	}
	for _, q := range t.Queues {
		if c.taken[q.Name] && q.Name != "" {
			c.fault("Queues has %q twice", q.Name)
		}
		c.taken[q.Name] = true
		for _, b := range q.Bindings {
			c.shared[b]++
		}
	}
	for _, q := range t.Queues {
		c.queue(q)
	}
	if len(c.faults) > 0 {
		return nil, c.faults
	}
	return c.out, nil
}

type compiler struct {
	out    *topology
	kinds  map[string]Kind
	taken  map[string]bool
	shared map[Binding]int // how many queues have it
	faults []error
}

func (c *compiler) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Errorf("Topology."+format, args...))
}

func (c *compiler) exchange(e Exchange) {
	if fault := nameFault(e.Name); fault != "" {
		c.fault("Exchanges: the name %q %s", e.Name, fault)
	}
	if e.Kind < Fanout || e.Kind > Direct {
		c.fault("Exchanges: %q is of kind %s: give Fanout, Topic or Direct", e.Name, e.Kind)
	}
	if _, twice := c.kinds[e.Name]; twice {
		c.fault("Exchanges has %q twice", e.Name)
	}
	c.kinds[e.Name] = e.Kind
	c.out.exchanges = append(c.out.exchanges, e)
}

func (c *compiler) queue(q Queue) {
	fault := func(format string, args ...any) {
		c.fault("Queues: %q "+format, append([]any{q.Name}, args...)...)
	}
	if text := nameFault(q.Name); text != "" {
		fault("%s", text)
	}
	if q.Type != Quorum && q.Type != Classic {
		fault("is of type %s: give Quorum or Classic", q.Type)
	}
	switch {
	case q.Type == Classic && q.DeliveryLimit != 0:
		fault("has a DeliveryLimit, which only quorum queues have: leave it out, or make it Quorum")
	case q.DeliveryLimit < -1:
		fault("has DeliveryLimit %d: give a positive number, 0 for %d, or -1 for none", q.DeliveryLimit, defaultDeliveryLimit)
	case q.Type == Quorum && q.DeliveryLimit == 0:
		q.DeliveryLimit = defaultDeliveryLimit
	}
	if q.MaxLength < 0 || q.MaxLengthBytes < 0 {
		fault("has a negative MaxLength or MaxLengthBytes: give a positive number, or 0 for no bound")
	}
	for _, b := range q.Bindings {
		kind, known := c.kinds[b.Exchange]
		switch {
		case !known:
			fault("is bound to exchange %q, which is not in Topology.Exchanges: add it, so that its kind is known", b.Exchange)
		case kind == Fanout && b.Key != "":
			fault("is bound to the fanout exchange %q by key %q, which it ignores: leave the key out", b.Exchange, b.Key)
		case kind == Topic && b.Key == "":
			fault("is bound to the topic exchange %q by an empty pattern, which fits no event: give \"#\" for all", b.Exchange)
		}
	}
	for name := range q.Arguments {
		if slices.Contains(ownArguments, name) {
			fault("has %s in Arguments: use the field for it; x-message-ttl and x-expires would throw away what nobody has read", name)
		}
	}
	c.deadLetter(&q, fault)
	c.overflow(&q, fault)
	c.out.queues = append(c.out.queues, q)
}

func (c *compiler) deadLetter(q *Queue, fault func(string, ...any)) {
	d := &q.DeadLetter
	switch {
	case q.NoDeadLetterLosesMessages && *d != DeadLetter{}:
		fault("has both DeadLetter and NoDeadLetterLosesMessages: leave one of them out")
		return
	case q.NoDeadLetterLosesMessages:
		return
	case d.Queue != "" && d.Exchange != "":
		fault("has both DeadLetter.Queue and DeadLetter.Exchange: leave one of them out")
		return
	case d.Exchange == "" && d.RoutingKey != "":
		fault("has DeadLetter.RoutingKey, but no DeadLetter.Exchange: name the queue instead (DeadLetter.Queue)")
		return
	case d.Exchange != "":
		return
	case d.Queue == "":
		d.Queue = q.Name + deadSuffix
	}
	if text := nameFault(d.Queue); text != "" && nameFault(q.Name) == "" {
		fault("has a DeadLetter.Queue %q that %s", d.Queue, text)
	}
	if d.Queue == q.Name {
		fault("is its own DeadLetter.Queue: name another one")
	}
	if !c.taken[d.Queue] {
		c.taken[d.Queue] = true
		c.out.queues = append(c.out.queues, Queue{Name: d.Queue, Type: q.Type, DeliveryLimit: -1, NoDeadLetterLosesMessages: true})
	}
}

func (c *compiler) overflow(q *Queue, fault func(string, ...any)) {
	if q.MaxLength == 0 && q.MaxLengthBytes == 0 {
		if q.Overflow != OverflowByPlace {
			fault("has Overflow %s, but no MaxLength: leave one out, or give both", q.Overflow)
		}
		return
	}
	behind := c.sharedExchange(q)
	switch q.Overflow {
	case OverflowByPlace:
		if q.Overflow = RejectPublish; behind != "" && !q.RejectBehindExchangeStopsEverybody {
			q.Overflow = DeadLetterOldest
		}
	case RejectPublish:
		if behind != "" && !q.RejectBehindExchangeStopsEverybody {
			fault("has Overflow RejectPublish behind exchange %q: when it is full, nothing gets into that exchange any more, and each try is "+
				"one more copy in its other queues; use DeadLetterOldest, or insist with RejectBehindExchangeStopsEverybody", behind)
		}
	case DeadLetterOldest:
	default:
		fault("has Overflow %s: give RejectPublish or DeadLetterOldest", q.Overflow)
	}
	if q.Overflow == DeadLetterOldest && q.NoDeadLetterLosesMessages {
		fault("has a MaxLength that makes room by dead-lettering the oldest, and no dead-lettering: unread messages would be thrown away; " +
			"allow DeadLetter, or use RejectPublish on a queue of its own")
	}
}

// sharedExchange is an exchange behind which the queue may not be alone, or "".
func (c *compiler) sharedExchange(q *Queue) string {
	for _, b := range q.Bindings {
		if c.kinds[b.Exchange] != Direct || c.shared[b] > 1 {
			return b.Exchange
		}
	}
	return ""
}

// Describe prints what is declared, a line for each thing; or what is wrong.
func (t Topology) Describe() string {
	c, faults := t.compile()
	if len(faults) > 0 {
		return errors.Join(faults...).Error()
	}
	var b strings.Builder
	for _, e := range c.exchanges {
		fmt.Fprintf(&b, "exchange %q: %s, durable", e.Name, e.Kind)
		if e.Alternate != "" {
			fmt.Fprintf(&b, ", alternate exchange %q", e.Alternate)
		}
		b.WriteByte('\n')
	}
	for _, q := range c.queues {
		fmt.Fprintf(&b, "queue %q: %s, durable", q.Name, q.Type)
		args := q.arguments(serverNow)
		names := make([]string, 0, len(args))
		for name := range args {
			if name != "x-queue-type" {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			fmt.Fprintf(&b, ", %s=%v", name, quoted(args[name]))
		}
		b.WriteByte('\n')
		for _, bind := range q.Bindings {
			fmt.Fprintf(&b, "  bound to exchange %q", bind.Exchange)
			if bind.Key != "" {
				fmt.Fprintf(&b, " by %q", bind.Key)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func quoted(v any) any {
	if s, ok := v.(string); ok && s == "" {
		return `""`
	}
	return v
}
