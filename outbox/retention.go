package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// Forever is for windows of RetentionConfig: what they are about never leaves.
const Forever time.Duration = math.MaxInt64

// RetentionConfig says what leaves, and when. The zero value works.
type RetentionConfig struct {
	// Schema holds the tables. Defaults to migrations.DefaultSchema.
	Schema string
	// Keep is for how long an event stays in the log after its append, by the
	// database's clock: so far back can a relay or durable handler be rewound, or a
	// new one begin. It stays longer until all of them have passed it for good.
	// Defaults to 7 days; at least 1 s; Forever: the log is not touched.
	Keep time.Duration
	// KeepDiscarded is for how long a discarded event stays among the parked ones
	// after its discard. It stays longer while the log has it. Defaults to 30 days;
	// Forever: for ever.
	KeepDiscarded time.Duration
	// KeepRequests is for how long the record of a request stays after it was carried
	// out. Defaults to 90 days; Forever: for ever.
	KeepRequests time.Duration
	// KeepInbox is for how long a handler remembers an event that it has handled. An
	// event that is delivered again after that takes effect again, so it must be more
	// than a broker keeps messages, and than anybody waits with a replay from a poison
	// queue. Defaults to 30 days; Forever: for ever.
	KeepInbox time.Duration

	// MaxHold ends the position of a relay or durable handler, whatever it still has
	// to read, once the oldest event that it has not passed was appended so long ago:
	// else one that nobody runs any more keeps the log for ever. Its Run is then
	// refused with ErrPositionLost. A rewind brings old events back into its account,
	// so leave it time. At least Keep. Defaults to 0: no position is ever ended.
	MaxHold time.Duration
	// MaxHoldRows ends it as MaxHold does, once the log has given out more ids than
	// that above the last one that it has passed. Defaults to 0: no position is ever ended.
	MaxHoldRows int64
	// WithoutReaders lets events leave by their age alone as long as there is no relay
	// and no durable handler. Defaults to false: then nothing leaves, since the first
	// one may be about to begin.
	WithoutReaders bool

	// Interval is how long Run rests between two looks. Defaults to 30 s; at least 10 ms.
	Interval time.Duration
	// DatabaseTimeout bounds one call to the database. Defaults to 10 s.
	DatabaseTimeout time.Duration
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Retention removes what is old enough and not needed any more: events of the log
// that every relay and durable handler has passed, discarded events, carried-out
// requests, and rows of the inbox. It takes no lock that an append, a relay or a
// handler waits for, works in transactions of a fraction of a second with a rest as
// long between them, and walks no rows twice.
type Retention struct {
	cfg     RetentionConfig
	db      *database
	running atomic.Bool

	width  int64             // ids of the next chunk
	strips map[string]*strip // by table: where to look next
	told   map[string]bool   // who was said to hold the log back
	silent bool              // it was said that nobody reads the log
}

// RetentionReport is what one look has done and found.
type RetentionReport struct {
	Removed int64 // events of the log
	Floor   int64 // events up to this log id may be gone: no rewind reaches there

	Discarded int64 // rows of parked
	Requests  int64 // rows of relay_request
	Inbox     int64 // rows of inbox

	// HeldBy is who keeps events in the log that are older than RetentionConfig.Keep,
	// and who has been ended, by name.
	HeldBy []HeldBack
	// NoReaders: there is no position, so that nothing leaves the log (RetentionConfig.WithoutReaders).
	NoReaders bool
}

// NewRetention checks the config; it does not touch the database. The pool must be
// connected to the primary, directly or through PgBouncer (then with
// default_query_exec_mode=exec); one connection of it is used at a time. It stays the
// caller's to close, after Run has returned. Faults of cfg come joined, wrapped in
// ErrInvalidConfig.
func NewRetention(pool *pgxpool.Pool, cfg RetentionConfig) (*Retention, error) {
	var faults []error
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	cfg, more := cfg.withDefaults()
	if faults = append(faults, more...); len(faults) > 0 {
		return nil, fmt.Errorf("outbox.NewRetention: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return &Retention{cfg: cfg, db: &database{pool: pool, schema: cfg.Schema, timeout: cfg.DatabaseTimeout},
		width: firstChunk, strips: map[string]*strip{}, told: map[string]bool{}}, nil
}

// withDefaults fills in what is zero and reports all that is wrong.
func (c RetentionConfig) withDefaults() (_ RetentionConfig, faults []error) {
	if c.Schema == "" {
		c.Schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(c.Schema); err != nil {
		faults = append(faults, fmt.Errorf("RetentionConfig.Schema: %w", err))
	}
	span := func(name string, v *time.Duration, def, least time.Duration) {
		if *v == 0 {
			*v = def
		}
		if *v < least {
			faults = append(faults, fmt.Errorf("RetentionConfig.%s is %s: use at least %s, or 0 for the default of %s", name, *v, least, def))
		}
	}
	const day = 24 * time.Hour
	span("Keep", &c.Keep, 7*day, time.Second)
	span("KeepDiscarded", &c.KeepDiscarded, 30*day, time.Second)
	span("KeepRequests", &c.KeepRequests, 90*day, time.Second)
	span("KeepInbox", &c.KeepInbox, 30*day, time.Second)
	span("Interval", &c.Interval, 30*time.Second, 10*time.Millisecond)
	span("DatabaseTimeout", &c.DatabaseTimeout, 10*time.Second, 100*time.Millisecond)
	if c.MaxHold < 0 || c.MaxHold > 0 && c.MaxHold < c.Keep {
		faults = append(faults, fmt.Errorf("RetentionConfig.MaxHold is %s, Keep is %s: events stay so long anyway, so use at least that, or 0 to end no position", c.MaxHold, c.Keep))
	}
	if c.MaxHoldRows < 0 {
		faults = append(faults, fmt.Errorf("RetentionConfig.MaxHoldRows is %d: use a number of ids, or 0 to end no position", c.MaxHoldRows))
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, faults
}

// retentionName stands in the lease, where no relay and no handler can have it: their
// names hold no parentheses.
const retentionName = "(retention)"

// Run looks every Interval until ctx is done, and then returns nil. Run it in as many
// processes as you like: one works, the others stand by. Trouble with the database is
// waited out, and said once. It returns an error at once for what waiting cannot
// mend: the database out of reach or not migrated at the start, a read replica,
// another cluster's log, a missing privilege, ErrAlreadyRunning.
func (r *Retention) Run(ctx context.Context) error {
	if !r.running.CompareAndSwap(false, true) {
		return fmt.Errorf("run retention: %w: one Run or Once at a time per Retention value", ErrAlreadyRunning)
	}
	defer r.running.Store(false)
	if err := r.check(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("run retention: %w", err)
	}
	l := newLease(r.db, owner{kind: "retention", name: retentionName}, allSlots, uuid.New(), max(3*r.cfg.Interval, 10*time.Second))
	defer func() { _ = l.giveUp(ctx) }() // it runs out by itself
	holds, troubled := false, false
	for ctx.Err() == nil {
		held, err := l.take(ctx)
		if err == nil && held {
			if !holds {
				r.cfg.Logger.Info("retention active", "holder", l.holder)
			}
			_, err = r.look(ctx, l)
		}
		holds = held
		switch {
		case ctx.Err() != nil:
			return nil
		case isFinal(err):
			return fmt.Errorf("run retention: %w", err)
		case err != nil && !troubled:
			r.cfg.Logger.Warn("retention was interrupted, and goes on at its next look", "error", err)
		}
		troubled = err != nil
		sleep(ctx, time.Duration((0.8+0.4*rand.Float64())*float64(r.cfg.Interval)))
	}
	return nil
}

// Once does all that there is to do now, and returns: for a cron job instead of Run,
// and for tests. It needs no lease; beside a Run, or another Once, the two take turns
// in their transactions. On an error, and when ctx is done, the report says what was
// done until then. Its errors are those of Run, and the database's.
func (r *Retention) Once(ctx context.Context) (RetentionReport, error) {
	if !r.running.CompareAndSwap(false, true) {
		return RetentionReport{}, fmt.Errorf("retention: %w: one Run or Once at a time per Retention value", ErrAlreadyRunning)
	}
	defer r.running.Store(false)
	if err := r.check(ctx); err != nil {
		return RetentionReport{}, fmt.Errorf("retention: %w", err)
	}
	report, err := r.look(ctx, nil)
	if err != nil {
		return report, fmt.Errorf("retention: %w", err)
	}
	return report, ctx.Err()
}

// grantsOfRetention is what retention does to our tables, and no more.
var grantsOfRetention = []grant{
	{"SCHEMA", "", "USAGE"},
	{"TABLE", "schema_migration", "SELECT"},
	{"TABLE", "outbox_source", "SELECT"},
	{"TABLE", "outbox", "SELECT, DELETE"},
	{"SEQUENCE", "outbox_id", "SELECT"},
	{"TABLE", "relay", "SELECT, INSERT, UPDATE"}, // INSERT, UPDATE: to end a position
	{"TABLE", "relay_link", "SELECT, INSERT"},
	{"TABLE", "relay_lease", "SELECT, INSERT, UPDATE"},
	{"TABLE", "relay_request", "SELECT, DELETE"},
	{"TABLE", "retention", "SELECT, UPDATE"},
	{"TABLE", "parked", "SELECT, DELETE"},
	{"TABLE", "inbox", "SELECT, DELETE"},
}

// check refuses what would remove the wrong rows, or never work.
func (r *Retention) check(ctx context.Context) error {
	if err := r.db.checkServer(ctx); err != nil {
		return err
	}
	if err := r.db.missingGrants(ctx, "retention", grantsOfRetention); err != nil {
		return err
	}
	if err := migrations.Check(ctx, r.db.pool, r.db.schema); err != nil {
		return err
	}
	return r.db.checkOrigin(ctx)
}
