package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DurableFunc handles one event inside tx, the transaction of the position: what it
// writes through tx is committed together with the step past the event, or not at
// all, so that its effects in this database happen once. It must not keep tx or m, nor share
// tx with goroutines. ctx ends after DurableConfig.HandlerTimeout, or with the lease.
//
// An error, or a panic, rolls back; the event is put aside and tried again later,
// and so is what follows of its key. An error that wraps ErrPermanent gives the event
// up at once; one that wraps ErrUnavailable says that what the handler needs is away:
// no attempt is counted, and all events wait; one that wraps ErrNotYet
// counts no attempt either, and holds up its key only.
type DurableFunc func(ctx context.Context, tx *Tx, m *Message) error

// Durable hands every committed event of some types to a function, serially, each in
// the transaction that also moves its position.
type Durable struct {
	cfg     DurableConfig
	pool    *pgxpool.Pool
	handle  DurableFunc
	running atomic.Bool
	stopped chan struct{} // closed by Stop
	stop    sync.Once
}

// NewDurable checks the config; it does not touch the database. The pool must be
// connected to the primary, directly or through PgBouncer (then with
// default_query_exec_mode=exec), as a role that may also write what handle writes; a
// durable handler uses up to three of its connections. It stays the caller's to close,
// after Run has returned. See also [RunDurables].
func NewDurable(pool *pgxpool.Pool, handle DurableFunc, cfg DurableConfig) (*Durable, error) {
	var faults []error
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if handle == nil {
		faults = append(faults, errors.New("the handler is nil: pass a function"))
	}
	cfg, more := cfg.withDefaults()
	if faults = append(faults, more...); len(faults) > 0 {
		return nil, fmt.Errorf("outbox.NewDurable: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return &Durable{cfg: cfg, pool: pool, handle: handle, stopped: make(chan struct{})}, nil
}

// Name is that of the position.
func (d *Durable) Name() string { return d.cfg.Name }

// Config is what it runs with, defaults filled in.
func (d *Durable) Config() DurableConfig { return d.cfg }

// Run handles events until ctx is done; then it lets the handler under way return, at
// most DrainTimeout, and returns nil. While another process holds the lease of this
// name it stands by. It returns an error for what waiting cannot mend, as Relay.Run does.
func (d *Durable) Run(ctx context.Context) error { return d.run(ctx, d.pool, nil) }

// Stop ends the present Run, as the end of its ctx would, and all further ones. It
// does not wait.
func (d *Durable) Stop() { d.stop.Do(func() { close(d.stopped) }) }

// run uses pool, and of heavy, if it is not nil, a place for whatever may take long.
func (d *Durable) run(ctx context.Context, pool *pgxpool.Pool, heavy chan struct{}) error {
	who := owner{kindHandler, d.cfg.Name}
	if !d.running.CompareAndSwap(false, true) {
		return fmt.Errorf("run %s: %w: one Run per Durable value; a second one of the name needs a value of its own and stands by", who, ErrAlreadyRunning)
	}
	defer d.running.Store(false)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.stopped:
			cancel()
		case <-ctx.Done():
		}
	}()

	db := &database{pool: pool, schema: d.cfg.Schema, timeout: d.cfg.DatabaseTimeout, heavy: heavy}
	log := d.cfg.Logger.With("handler", d.cfg.Name)
	holder, had := uuid.New(), false
	s := &shift{
		who: who, db: db, holder: holder, lease: d.cfg.Lease, log: log, hooks: d.cfg.Hooks,
		active: "durable handler active", standsBy: "durable handler stands by: another process holds the lease",
		had: &had,
		work: func(ctx, hard context.Context, l *lease, source string, wakeC <-chan struct{}) error {
			t := d.newDuty(db, l, source, holder, wakeC)
			t.had = had
			err := t.run(ctx, hard)
			had = had || t.chain.pos.n > 0
			return err
		},
	}
	return s.run(ctx)
}
