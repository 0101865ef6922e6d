package brokertest

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Group is the consumer group of all subscribers: of a topic, every message is for one of them.
const Group = "conformance"

// Broker is a publisher and a subscriber, and the server between them. Required are all
// fields above Foreign.
type Broker struct {
	// Name is the heading of the column in docs/brokers/README.md.
	Name         string
	Capabilities Capabilities

	// Address is that of the shared server, in the form of its environment variable.
	Address func(t testing.TB) string
	// Private starts a server of the test's own, for the cases that kill it. What it has
	// accepted must be on disk.
	Private func(t testing.TB) Server
	// NewTopic creates a topic, and what else Group needs to get its messages, on the server
	// at that address, and removes it when the test ends.
	NewTopic func(t testing.TB, address string) string

	// Publisher and Subscriber build new ones; the suite closes them. They are told the
	// address in Options, which may be a proxy's: nothing may go past it.
	Publisher  func(Options) (message.Publisher, error)
	Subscriber func(Options) (message.Subscriber, error)

	// LargestPayload in bytes still passes with a few headers; TooLarge does not.
	LargestPayload int
	TooLarge       int

	// Foreign adds an entry that no publisher of this wire format has written, and that
	// cannot be read as one. Nil where the format knows no such entry.
	Foreign func(t testing.TB, address, topic string)
	// RefusedTopic is a name that the server does not take messages for. Nil leaves that out.
	RefusedTopic func(t testing.TB, address string) string
	// Queue is what Subscribe is given to get the messages of a topic. Nil: the topic.
	Queue func(topic string) string
	// Lag asks a subscriber how many messages it has not settled, and how old the oldest
	// is. Nil where there is no such call.
	Lag func(ctx context.Context, s message.Subscriber, topic string) (messages int64, oldest time.Duration, err error)
	// Patience is for what comes by itself after trouble: a session that has to run out, a
	// heartbeat that has to be missed. Defaults to 30 s.
	Patience time.Duration
	// RepeatsPerFault bounds the deliveries beyond the first that a kill, a cut or a
	// hand-over causes. Defaults to 256: what is in flight on both sides.
	RepeatsPerFault int
	// Reconnects bounds the time in which a subscriber that has lost its connections
	// without being told (half-open) must have noticed. Defaults to a minute.
	Reconnects time.Duration
	// Emulated says in what way the server is less than the real service once it was killed;
	// order is then not looked at there, and a message refused for good is sent again.
	Emulated string
	// Idle lists functions whose goroutines a client keeps for the whole process.
	Idle []string
	// Short names the cases of the short form. Nil: all.
	Short []string
	// Skip names cases that this run leaves out, and says why.
	Skip map[string]string
}

// Server is a private server, such as a testkit.PrivateBroker. Kill is a SIGKILL; Start brings
// it back, with its data and at the same address, and returns when it answers. If it has a method Settle, that is called between the creation
// of a topic and the first Kill.
type Server interface {
	URL() string // in the form of Broker.Address
	Kill()
	Start()
}

// Options are what a case wants of a publisher or subscriber.
type Options struct {
	Address string
	// Timeout is the deadline of one call to publish.
	Timeout time.Duration
	// MaxInFlight is how many messages a subscriber should have out at once.
	MaxInFlight int
	// Failover is after how long another consumer should take over from a dead one, where
	// that is set by the consumer.
	Failover time.Duration
	Logger   *slog.Logger
	// OnEnd registers what is to be closed after the publisher or subscriber: its client.
	OnEnd func(func())
}

func (b Broker) withDefaults(t testing.TB) Broker {
	t.Helper()
	if b.Name == "" || b.Address == nil || b.Private == nil || b.NewTopic == nil || b.Publisher == nil || b.Subscriber == nil ||
		b.LargestPayload <= 0 || b.TooLarge <= b.LargestPayload {
		t.Fatalf("describe broker %q to the suite: Name, Address, Private, NewTopic, Publisher, Subscriber, LargestPayload and a larger TooLarge are required", b.Name)
	}
	if b.Queue == nil {
		b.Queue = func(topic string) string { return topic }
	}
	if b.Patience == 0 {
		b.Patience = 30 * time.Second
	}
	if b.RepeatsPerFault == 0 {
		b.RepeatsPerFault = 256
	}
	if b.Reconnects == 0 {
		b.Reconnects = time.Minute
	}
	for _, name := range slices.AppendSeq(slices.Clone(b.Short), maps.Keys(b.Skip)) {
		if !isCase(name) {
			t.Fatalf("describe broker %q to the suite: Short or Skip names %q, which is no case", b.Name, name)
		}
	}
	return b
}
