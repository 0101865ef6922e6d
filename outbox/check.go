package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// ProblemKind is what is wrong with a relay or durable handler, to branch on.
type ProblemKind string

// The page docs/operations.md says of each what it means and what to do.
const (
	// ProblemStuck: it publishes nothing, though committed events wait and its lease
	// may well be renewed.
	ProblemStuck ProblemKind = "stuck"
	// ProblemBehind: it publishes, and events wait for too long all the same.
	ProblemBehind ProblemKind = "behind"
	// ProblemNotRunning: nobody holds its lease.
	ProblemNotRunning ProblemKind = "not_running"
	// ProblemAbandoned: nobody has for very long, and the log is kept for it.
	ProblemAbandoned ProblemKind = "abandoned"
	// ProblemLost: retention has ended its position: events were removed unread.
	ProblemLost ProblemKind = "lost"
	// ProblemPaused: it is paused for longer than CheckConfig.MaxPaused.
	ProblemPaused ProblemKind = "paused"
	// ProblemGivenUp: events were given up, and a person is needed.
	ProblemGivenUp ProblemKind = "given_up"
	// ProblemParked: too many events are put aside.
	ProblemParked ProblemKind = "parked"
	// ProblemRetrying: an event is tried again and again, and its key waits.
	ProblemRetrying ProblemKind = "retrying"
	// ProblemRequests: what was asked for is not carried out.
	ProblemRequests ProblemKind = "requests"
	// ProblemUnknown: CheckConfig.Relays names it, and nobody has ever run it.
	ProblemUnknown ProblemKind = "unknown"
)

// Problem is one thing that is wrong. Text says which relay, what is seen, with
// figures, and what to do; it holds no payload, key or credential.
type Problem struct {
	Relay string // or durable handler
	Kind  ProblemKind
	Text  string
}

func (p *Problem) Error() string { return p.Text }

// Problems gives all that an error of [Check] tells; nil if it is not about the
// relays: the database cannot be asked.
func Problems(err error) (all []*Problem) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, Problems(e)...)
		}
		return all
	}
	var p *Problem
	if errors.As(err, &p) {
		all = append(all, p)
	}
	return all
}

// Unlimited switches off a limit of CheckConfig that counts events.
const Unlimited = -1

// CheckConfig says what Check calls healthy. The zero value works.
type CheckConfig struct {
	// Schema defaults to migrations.DefaultSchema.
	Schema string
	// Relays are the relays and durable handlers that must be there and are checked.
	// Empty: all that there are.
	Relays []string
	// MaxAge is how long a committed event may wait to be published, or to be handled.
	// It counts from the append, or from the beginning of the round that takes it if
	// that is later: the events of a long transaction are old when they appear.
	// Defaults to 5 minutes.
	MaxAge time.Duration
	// MaxUnheld is how long nobody may hold the lease: more than a deployment leaves
	// without a relay. Defaults to 1 minute.
	MaxUnheld time.Duration
	// AbandonedAfter is when one that nobody runs is told as abandoned, if the log
	// holds events that it has not read: retention keeps those. Defaults to 24 hours.
	AbandonedAfter time.Duration
	// MaxPaused is how long one may be paused. Defaults to 0: for ever, since a person
	// has said so. While it is paused its events may be of any age.
	MaxPaused time.Duration
	// MaxGivenUp is how many events may have been given up: each needs a person, and
	// under BlockKey keeps its key waiting. Defaults to 0: the first is a problem.
	// Unlimited: not checked.
	MaxGivenUp int
	// MaxParked is how many events may be put aside and not discarded. Defaults to
	// 10,000, a tenth of what RelayConfig.MaxParked allows by default: at that, the
	// relay stops. Unlimited: not checked.
	MaxParked int
	// MaxRetrying is how long a parked event may be tried again, while its key waits.
	// Defaults to 1 hour: longer than the attempts of RetryConfig take, and what is
	// never given up, such as an unknown outcome, shows by it.
	MaxRetrying time.Duration
	// MaxRequestAge is how long a request may wait to be carried out. Defaults to 1
	// minute.
	MaxRequestAge time.Duration
	// Confirm is how long after a first look a second one is taken if something is
	// wrong; only what both have seen is told. A hand-over, or a long transaction that
	// has just committed, looks like trouble for a moment. Defaults to 2 s, longer than
	// a relay needs by its defaults (RelayConfig.PollInterval). A deadline of ctx makes
	// it shorter: half of what is left.
	Confirm time.Duration
}

func (c CheckConfig) withDefaults() (_ CheckConfig, faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Schema == "" {
		c.Schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(c.Schema); err != nil {
		fault("CheckConfig.Schema: %w", err)
	}
	for _, name := range c.Relays {
		if !relayName.MatchString(name) {
			fault("CheckConfig.Relays has %.120q: use the names of relays (RelayConfig.Name) and durable handlers", name)
		}
	}
	span := func(name string, v *time.Duration, def time.Duration) {
		if *v < 0 {
			fault("CheckConfig.%s is %s: use a positive duration, or 0 for the default", name, *v)
		}
		if *v == 0 {
			*v = def
		}
	}
	span("MaxAge", &c.MaxAge, 5*time.Minute)
	span("MaxUnheld", &c.MaxUnheld, time.Minute)
	span("AbandonedAfter", &c.AbandonedAfter, 24*time.Hour)
	span("MaxPaused", &c.MaxPaused, 0)
	span("MaxRetrying", &c.MaxRetrying, time.Hour)
	span("MaxRequestAge", &c.MaxRequestAge, time.Minute)
	span("Confirm", &c.Confirm, 2*time.Second)
	if c.MaxParked == 0 {
		c.MaxParked = 10_000
	}
	if c.MaxGivenUp < Unlimited {
		fault("CheckConfig.MaxGivenUp is %d: use 0 or more, or Unlimited", c.MaxGivenUp)
	}
	if c.MaxParked < Unlimited {
		fault("CheckConfig.MaxParked is %d: use 1 or more, 0 for the default of 10,000, or Unlimited", c.MaxParked)
	}
	return c, faults
}

// Check tells whether the log is read as it should be: nil, or all that is wrong, as
// *[Problem] values joined ([Problems] lists them), or the error of the database
// that could not be asked. It asks what [ReadStats] asks, with the same privileges,
// from any process; what it counts is bounded by the limits. If something is wrong it
// looks again after CheckConfig.Confirm, so that it takes that long; else
// milliseconds.
//
// What it tells needs a person, or another system, and never a restart of the
// process that asks: make it an alert, not a liveness probe.
func Check(ctx context.Context, pool *pgxpool.Pool, cfg CheckConfig) error {
	cfg, faults := cfg.withDefaults()
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if len(faults) > 0 {
		return fmt.Errorf("outbox.Check: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	db := &database{pool: pool, schema: cfg.Schema, timeout: 10 * time.Second}
	first, err := cfg.look(ctx, db)
	if err != nil || len(first) == 0 {
		return err
	}
	if err := cfg.wait(ctx); err != nil {
		return join(first) // better than nothing: the caller's time is up
	}
	second, err := cfg.look(ctx, db)
	switch {
	case err != nil && ctx.Err() != nil:
		return join(first)
	case err != nil:
		return err
	}
	return join(inBoth(first, second))
}

// look finds what is wrong at this moment.
func (c *CheckConfig) look(ctx context.Context, db *database) ([]*Problem, error) {
	counted := parkedCounted
	if c.MaxParked != Unlimited {
		counted = max(c.MaxParked, c.MaxGivenUp) // one more is enough to know
	}
	stats, err := db.stats(ctx, counted, false)
	if err != nil {
		return nil, err
	}
	return c.problems(&stats), nil
}

func (c *CheckConfig) wait(ctx context.Context) error {
	d := c.Confirm
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline)/2)
	}
	sleep(ctx, d)
	return ctx.Err()
}

// inBoth gives those of the second look that the first has seen too.
func inBoth(first, second []*Problem) (both []*Problem) {
	type id struct {
		relay string
		kind  ProblemKind
	}
	seen := map[id]bool{}
	for _, p := range first {
		seen[id{p.Relay, p.Kind}] = true
	}
	for _, p := range second {
		if seen[id{p.Relay, p.Kind}] {
			both = append(both, p)
		}
	}
	return both
}

func join(problems []*Problem) error {
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}
