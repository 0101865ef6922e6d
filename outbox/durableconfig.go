package outbox

import (
	"log/slog"
	"time"
)

// DurableConfig configures a Durable. Only Name has no default.
type DurableConfig struct {
	// Name identifies the position. Processes that run a durable handler of one name
	// share the work by turns: one is active, the others stand by.
	Name string
	// Schema holds the tables. Defaults to migrations.DefaultSchema.
	Schema string
	// StartAt is where a name that has never run begins. Defaults to FromBeginning.
	StartAt StartAt
	// Types are the event types that are handled, each one by name ("order.placed") or
	// by pattern ("order.*", "*"). The others are passed over, for good. Defaults to all.
	Types []string
	// Policy says what becomes of a key when one of its events is given up. Defaults to
	// BlockKey.
	Policy Policy
	// Retry of an event whose handler fails.
	Retry RetryConfig

	// Batch is how many events may share one transaction: many times faster where the
	// handler is short. When one of them fails, all are rolled back and handled again
	// one by one. Defaults to 1, each event in a transaction of its own.
	Batch int
	// HandlerTimeout bounds one call of the handler: its ctx ends. Within it, the
	// server ends a transaction that sits idle, or a statement that takes, longer than
	// half the lease. Defaults to half the lease.
	HandlerTimeout time.Duration
	// DrainTimeout is what the handler under way gets to return when Run is cancelled;
	// then its ctx ends, and the event is left to the next holder. Defaults to 5 s.
	DrainTimeout time.Duration

	// MaxParked and MaxParkedBytes bound the events put aside, and those that wait
	// behind one, and their payloads: when either is reached, no further event is
	// handled until one gets through or a person decides. Default to 100,000 and 1 GiB.
	MaxParked      int
	MaxParkedBytes int64

	// Lease is how long a crashed holder keeps the others waiting, and more than any
	// pause of a healthy process. Defaults to 10 s, at least 300 ms.
	Lease time.Duration
	// PollInterval is how long an idle handler sleeps at most; a commit through this
	// process wakes it at once. Defaults to 1 s.
	PollInterval time.Duration
	// DatabaseTimeout bounds one call to the database, other than the handler's own.
	// Defaults to 10 s.
	DatabaseTimeout time.Duration

	// Hooks are called as the work goes on. None by default.
	Hooks Hooks
	// Logger defaults to slog.Default(). Payloads are never logged.
	Logger *slog.Logger
}

// withDefaults fills in what is zero and reports all that is wrong.
func (c DurableConfig) withDefaults() (DurableConfig, []error) {
	f := &faults{of: "DurableConfig"}
	f.name(c.Name, "stock.ledger")
	f.schema(&c.Schema)
	f.startAt(c.StartAt)
	f.types(c.Types)
	f.policy(c.Policy)
	f.number("Batch", &c.Batch, 1, 10_000)
	f.parked(&c.MaxParked, &c.MaxParkedBytes)
	f.span("Lease", &c.Lease, 10*time.Second, 300*time.Millisecond)
	f.span("HandlerTimeout", &c.HandlerTimeout, c.Lease/2, time.Millisecond)
	f.span("DrainTimeout", &c.DrainTimeout, 5*time.Second, time.Millisecond)
	f.span("PollInterval", &c.PollInterval, time.Second, 10*time.Millisecond)
	f.span("DatabaseTimeout", &c.DatabaseTimeout, 10*time.Second, 100*time.Millisecond)
	f.retry(&c.Retry)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, f.all
}
