package outbox

import (
	"log/slog"
	"regexp"
	"time"
)

// Policy says what becomes of a key when one of its events is given up.
type Policy uint8

const (
	// BlockKey keeps the key's later events waiting until a person replays or
	// discards the one that was given up: order is kept. The default.
	BlockKey Policy = iota
	// SkipKey lets the key go on. A later replay of the event is then out of order,
	// and carries the header events.HeaderReplayed.
	SkipKey
)

// RetryConfig says how an event that the broker refuses for now is tried again:
// exponential backoff with jitter.
type RetryConfig struct {
	Initial     time.Duration // before the second attempt. Defaults to 100 ms.
	Max         time.Duration // between any two. Defaults to 1 minute.
	Multiplier  float64       // Defaults to 2.
	MaxAttempts int           // after which the event is given up. Defaults to 20: about a quarter of an hour.
}

// RelayConfig configures a Relay. Only Name has no default.
type RelayConfig struct {
	// Name identifies the relay's position. Processes that run a relay of one name
	// share the work by turns: one is active, the others stand by.
	Name string
	// Schema holds the tables. Defaults to migrations.DefaultSchema.
	Schema string
	// StartAt is where a name that has never run begins. Defaults to FromBeginning.
	StartAt StartAt
	// Types are the event types that go to the publisher, each one by name
	// ("order.placed") or by pattern ("order.*", "*"). The others are passed over, for
	// good. Defaults to all.
	Types []string
	// Policy defaults to BlockKey.
	Policy Policy
	// Retry of an event that is refused for now.
	Retry RetryConfig

	// Lanes is how many calls to the publisher may be under way at once. Defaults
	// to 8 for a publisher with a batch call, else to 64.
	Lanes int
	// Batch is how many events go into one call at most. Defaults to 1,000.
	Batch int
	// BatchBytes bounds a call's payloads. Defaults to 4 MiB.
	BatchBytes int
	// Window bounds the events between the log and the last committed link: what a
	// crash or a takeover may publish twice. Defaults to 10,000.
	Window int
	// WindowBytes bounds their payloads, and so the relay's memory. Defaults to 16 MiB.
	WindowBytes int

	// MaxParked and MaxParkedBytes bound the events put aside, and those that wait
	// behind one, and their payloads: when either is reached, the relay puts nothing
	// more aside, and stops as soon as its window is full. Default to 100,000 and 1 GiB.
	MaxParked      int
	MaxParkedBytes int64

	// Lease is how long a crashed holder keeps the others waiting, and more than
	// any pause of a healthy process. Defaults to 10 s, at least 300 ms.
	Lease time.Duration
	// PublishTimeout bounds one call to the publisher; what is left of the lease
	// bounds it too. Defaults to half the lease.
	PublishTimeout time.Duration
	// DrainTimeout is what calls under way get to come back when Run is cancelled.
	// Defaults to 5 s.
	DrainTimeout time.Duration
	// PollInterval is how long an idle relay sleeps at most; a commit through this
	// process wakes it at once (Log.Wake), an append whose commit nobody reports soon
	// (Log.Hint). Defaults to 1 s.
	PollInterval time.Duration
	// DatabaseTimeout bounds one call to the database. Defaults to 10 s.
	DatabaseTimeout time.Duration

	// Hooks are called as the work goes on. None by default.
	Hooks Hooks
	// Logger defaults to slog.Default(). Payloads are never logged.
	Logger *slog.Logger
}

var relayName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)

// withDefaults fills in what is zero and reports all that is wrong.
func (c RelayConfig) withDefaults(batches bool) (RelayConfig, []error) {
	lanes := 64
	if batches {
		lanes = 8
	}
	f := &faults{of: "RelayConfig"}
	f.name(c.Name, "kafka")
	f.schema(&c.Schema)
	f.startAt(c.StartAt)
	f.types(c.Types)
	f.policy(c.Policy)
	f.number("Lanes", &c.Lanes, lanes, 1024)
	f.number("Batch", &c.Batch, 1000, 100_000)
	f.number("BatchBytes", &c.BatchBytes, 4<<20, 1<<30)
	f.number("Window", &c.Window, 10_000, 1_000_000)
	f.number("WindowBytes", &c.WindowBytes, 16<<20, 1<<30)
	f.parked(&c.MaxParked, &c.MaxParkedBytes)
	f.span("Lease", &c.Lease, 10*time.Second, 300*time.Millisecond)
	f.span("PublishTimeout", &c.PublishTimeout, c.Lease/2, time.Millisecond)
	f.span("DrainTimeout", &c.DrainTimeout, 5*time.Second, time.Millisecond)
	f.span("PollInterval", &c.PollInterval, time.Second, 10*time.Millisecond)
	f.span("DatabaseTimeout", &c.DatabaseTimeout, 10*time.Second, 100*time.Millisecond)
	if c.PublishTimeout >= c.Lease {
		f.add("PublishTimeout is %s, the lease %s: a call must end while the lease lasts, so use less than the lease", c.PublishTimeout, c.Lease)
	}
	f.retry(&c.Retry)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, f.all
}
