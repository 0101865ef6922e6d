package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

var (
	// ErrNothingToRebase is returned by Rebase when the log, its positions and its
	// sequence belong to this cluster. RebaseConfig.Force does it all the same.
	ErrNothingToRebase = errors.New("there is nothing to rebase")
	// ErrNotAtRest is wrapped by Rebase while somebody else works on the log: a relay
	// or durable handler, a subscription, a transaction that has appended.
	ErrNotAtRest = errors.New("the log is not at rest")
)

// RebaseConfig is what Rebase may be told. The zero value works.
type RebaseConfig struct {
	// Schema defaults to migrations.DefaultSchema.
	Schema string
	// By is who does it, for the record: a person's name or a ticket, at most 200 bytes
	// of one line. Defaults to the connection's database role (session_user).
	By string
	// DryRun changes nothing and locks nothing: the report says what would be done.
	DryRun bool
	// Force goes on where there is nothing to rebase. It raises the incarnation, and
	// repeats nothing.
	Force bool
	// LockTimeout is for how long it waits for transactions that have appended and are
	// still open; while it waits, other appends wait behind it. Defaults to 5 s.
	LockTimeout time.Duration
}

// RebaseReport is what Rebase has done, or would do.
type RebaseReport struct {
	// Found says what did not belong to this cluster; empty if nothing.
	Found string
	// Incarnation is the log's new one.
	Incarnation int64
	// LastID is the highest id that has been given out; the next is above.
	LastID int64
	// Rewritten counts the events whose transaction id had to be replaced, of those in
	// the log. A dry run leaves it at 0.
	Rewritten int64
	// Moved counts the events that were appended in this cluster with ids that had been
	// given out in the other: they have new ids, above all others, in the same order.
	Moved int64
	// Positions has one entry per relay or durable handler and slot range, by name.
	Positions []RebasedPosition
}

// RebasedPosition is what a relay or durable handler still has to take from the log.
type RebasedPosition struct {
	Name             string
	SlotFrom, SlotTo int16
	Late             int64 // events below the ids it has come to, of transactions that committed late
	Rest             int64 // events above
	FirstID          int64 // the lowest of their ids; 0: none
}

// Rebase makes a log that was copied into another cluster at home there: after dump
// and restore, pg_upgrade, or a switch to a logical replica (blue/green). Transaction
// ids of one cluster mean nothing in another, so that a relay that finds such ids
// refuses to run (ErrOtherCluster, ErrSequenceBehind) until this is done, once.
//
// Every relay and durable handler then goes on with exactly what it had not settled
// in the state that was copied. The ids and transaction ids of events and positions
// are brought into this cluster's terms, the sequence is set above all ids, and the
// log's incarnation grows. It is one transaction: an error, a crash or the end of
// ctx leaves nothing of it. A row of the table relay_request per relay or durable
// handler says when it was, by whom, and what was found.
//
// Stop all relays and durable handlers first (else ErrNotAtRest), and drop a
// subscription that still brings rows in. Appends wait meanwhile. It reads the log
// once for each position and, in a cluster that has come less far than the old one,
// rewrites it. The role must be the schema's owner or have what ErrMissingPrivilege
// says. The pool stays the caller's to close.
func Rebase(ctx context.Context, pool *pgxpool.Pool, cfg RebaseConfig) (RebaseReport, error) {
	cfg, faults := cfg.withDefaults()
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if len(faults) > 0 {
		return RebaseReport{}, fmt.Errorf("outbox.Rebase: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	r := &rebase{db: &database{pool: pool, schema: cfg.Schema, timeout: 30 * time.Second}, cfg: cfg, holder: uuid.New()}
	if err := r.run(ctx); err != nil {
		return RebaseReport{}, fmt.Errorf("rebase the log of schema %q: %w", cfg.Schema, explain(cfg.Schema, err))
	}
	return r.report, nil
}

func (c RebaseConfig) withDefaults() (RebaseConfig, []error) {
	var faults []error
	if c.Schema == "" {
		c.Schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(c.Schema); err != nil {
		faults = append(faults, fmt.Errorf("RebaseConfig.Schema: %w", err))
	}
	if fault := faultOfLine(c.By, 200); fault != "" {
		faults = append(faults, fmt.Errorf("RebaseConfig.By %s: give it a person's name or a ticket, or leave it empty for the database role", fault))
	}
	if c.LockTimeout == 0 {
		c.LockTimeout = 5 * time.Second
	}
	if c.LockTimeout < time.Millisecond {
		faults = append(faults, fmt.Errorf("RebaseConfig.LockTimeout is %s: use at least 1 ms, or 0 for 5 s", c.LockTimeout))
	}
	return c, faults
}

// rebase is one call of Rebase.
type rebase struct {
	db     *database
	cfg    RebaseConfig
	holder uuid.UUID // of the links it writes
	tx     pgx.Tx
	report RebaseReport

	origin    origin
	positions []copiedPosition
	ids       idBounds
	xids      renumbering
	apart     []uint64 // transactions that the renumbering keeps apart; sorted

	moving []int64 // ids of events that were appended here, if some of them were passed elsewhere; sorted
}

// run looks before it locks anything: most refusals need no lock.
func (r *rebase) run(ctx context.Context) error {
	if err := r.db.checkServer(ctx); err != nil {
		return err
	}
	if err := r.db.missingGrants(ctx, "Rebase", grantsOfRebase); err != nil {
		return err
	}
	if err := migrations.Check(ctx, r.db.pool, r.db.schema); err != nil {
		return err
	}
	look := func(tx pgx.Tx) error { r.tx = tx; return r.plan(ctx) }
	if err := pgx.BeginTxFunc(ctx, r.db.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, look); err != nil || r.cfg.DryRun {
		return err
	}
	return pgx.BeginTxFunc(ctx, r.db.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error {
		r.tx = tx
		if err := r.lock(ctx); err != nil {
			return err
		}
		// Again: it may be another state by now.
		if err := r.plan(ctx); err != nil {
			return err
		}
		return r.carryOut(ctx)
	})
}

// lock waits until nobody has an open transaction that has appended, and keeps
// others from appending, from taking a lease, and from moving a position. Whoever
// has drawn an id holds a lock of the table until the end of the transaction, so from
// here on all ids that were drawn are either visible or gone.
func (r *rebase) lock(ctx context.Context) error {
	_, err := r.tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', '0', true),
		set_config('idle_in_transaction_session_timeout', '0', true)`, fmt.Sprintf("%dms", r.cfg.LockTimeout.Milliseconds()))
	if err != nil {
		return err
	}
	if _, err := r.tx.Exec(ctx, beDurable); err != nil {
		return err
	}
	retention := r.db.lockPositions()
	if _, err = r.tx.Exec(ctx, retention.sql, retention.args...); err == nil {
		_, err = r.tx.Exec(ctx, `LOCK TABLE `+r.db.table("outbox")+`, `+r.db.table("relay_lease")+`, `+r.db.table("relay_link")+`, `+
			r.db.table("parked")+` IN SHARE ROW EXCLUSIVE MODE`)
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == codeLockNotAvailable {
		return fmt.Errorf("%w: a transaction that has appended or works on the tables has stayed open for %s; end it (pg_stat_activity and pg_prepared_xacts show it), or raise RebaseConfig.LockTimeout: %w",
			ErrNotAtRest, r.cfg.LockTimeout, err)
	}
	return err
}

const codeLockNotAvailable = "55P03"

// plan finds out what is to be done. It changes nothing.
func (r *rebase) plan(ctx context.Context) (err error) {
	r.report = RebaseReport{}
	if err := r.checkRest(ctx); err != nil {
		return err
	}
	if r.origin, err = r.db.origin(ctx, r.tx); err != nil {
		return err
	}
	if r.origin.log == nil {
		return fmt.Errorf("%w: %s: copy it from the other cluster; if that is gone, INSERT INTO %s (system_identifier, timeline) VALUES (0, '') gives the log a new name",
			ErrOtherCluster, r.origin.foreign(), r.db.table("outbox_source"))
	}
	if err := r.readPositions(ctx); err != nil {
		return err
	}
	if err := r.readIDs(ctx); err != nil {
		return err
	}
	r.report.Found = r.origin.foreign()
	if r.report.Found == "" && r.ids.highest > r.ids.sequence {
		r.report.Found = fmt.Sprintf("ids have been given out up to %d, the sequence stands at %d", r.ids.highest, r.ids.sequence)
	}
	if r.report.Found == "" && !r.cfg.Force {
		return fmt.Errorf("%w: its log, positions and sequence belong to this cluster, and relays will run; RebaseConfig.Force raises the incarnation all the same", ErrNothingToRebase)
	}
	if err := r.planXids(ctx); err != nil {
		return err
	}
	if err := r.tx.QueryRow(ctx, `SELECT incarnation + 1 FROM `+r.db.table("outbox_source")).Scan(&r.report.Incarnation); err != nil {
		return err
	}
	r.report.LastID = r.ids.highest + r.report.Moved
	return r.countUnsettled(ctx)
}

// checkRest refuses while somebody moves positions, or brings rows in from elsewhere.
func (r *rebase) checkRest(ctx context.Context) error {
	var holders, subscriptions []string
	err := r.tx.QueryRow(ctx, `SELECT
			ARRAY(SELECT format('%s (for %s s more)', relay, ceil(extract(epoch FROM expires - clock_timestamp())))
				FROM `+r.db.table("relay_lease")+` WHERE expires > clock_timestamp() ORDER BY relay),
			ARRAY(SELECT DISTINCT s.subname::text FROM pg_subscription_rel AS o JOIN pg_subscription AS s ON s.oid = o.srsubid
				WHERE o.srrelid IN (`+quoteLiteral(r.db.table("outbox"))+`::regclass, `+quoteLiteral(r.db.table("relay_link"))+`::regclass) ORDER BY 1)`).
		Scan(&holders, &subscriptions)
	switch {
	case err != nil:
		return err
	case len(holders) > 0:
		return fmt.Errorf("%w: leases are held by %s: stop all relays and durable handlers, or wait until the leases of dead ones have run out", ErrNotAtRest, strings.Join(holders, ", "))
	case len(subscriptions) > 0:
		return fmt.Errorf("%w: subscriptions still bring in rows with the other cluster's numbers: wait until they have caught up, then DROP SUBSCRIPTION %s", ErrNotAtRest, strings.Join(subscriptions, ", "))
	}
	return nil
}
