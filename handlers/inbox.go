package handlers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/google/uuid"

	"github.com/postbus/postbus/internal/pooler"
	"github.com/postbus/postbus/migrations"
)

// key is what is settled once: an event in a handler.
type key struct {
	handler string
	event   uuid.UUID
}

// Inbox states, as the table has them.
const (
	stateNone     = ""
	stateHandled  = "handled"
	statePoisoned = "poisoned"
)

// InboxConfig configures an Inbox. The zero value is usable.
type InboxConfig struct {
	// Schema holds the table. Defaults to migrations.DefaultSchema.
	Schema string
	// Timeout bounds each call to the inbox, also the wait for a transaction that
	// has the same event in the same handler: when it ends, the message is given
	// back. Defaults to 5 s.
	Timeout time.Duration
	// IdleTimeout is after how long the server ends a transaction of InTx that sends
	// nothing (idle_in_transaction_session_timeout), whatever is set elsewhere. A
	// consumer whose machine has vanished would hold its inbox row, and with it the
	// event, until TCP notices, which takes hours. Defaults to 1 minute; NoTimeout
	// leaves the server's setting alone.
	IdleTimeout time.Duration
}

// faults are named as the caller knows the fields.
func (c InboxConfig) faults(pool *pgxpool.Pool, poolName, schemaName, timeoutName, idleName string) (faults []error) {
	if pool == nil {
		faults = append(faults, fmt.Errorf("%s is nil: pass an open *pgxpool.Pool of the database that has the inbox", poolName))
	}
	if c.Schema != "" {
		if err := migrations.CheckSchema(c.Schema); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", schemaName, err))
		}
	}
	if c.Timeout < 0 {
		faults = append(faults, fmt.Errorf("%s is %s: use a positive duration, or 0 for the default of 5 s", timeoutName, c.Timeout))
	}
	if c.IdleTimeout < 0 && c.IdleTimeout != NoTimeout {
		faults = append(faults, fmt.Errorf("%s is %s: use a positive duration, NoTimeout, or 0 for the default of 1 minute", idleName, c.IdleTimeout))
	}
	return faults
}

// Inbox is what consumers have settled, in Postgres. It is safe for use by
// several goroutines. The pool is its owner's to close, after the routers that
// use it have stopped.
type Inbox struct {
	pool        *pgxpool.Pool
	schema      string
	timeout     time.Duration
	idleTimeout time.Duration

	selectSQL, handleSQL, rehandleSQL, poisonSQL string
}

// NewInbox checks the config; it does not touch the database.
func NewInbox(pool *pgxpool.Pool, cfg InboxConfig) (*Inbox, error) {
	if faults := cfg.faults(pool, "pool", "InboxConfig.Schema", "InboxConfig.Timeout", "InboxConfig.IdleTimeout"); len(faults) > 0 {
		return nil, fmt.Errorf("handlers.NewInbox: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	setDefault(&cfg.Schema, migrations.DefaultSchema)
	setDefault(&cfg.Timeout, 5*time.Second)
	setDefault(&cfg.IdleTimeout, time.Minute)
	i := &Inbox{pool: pool, schema: cfg.Schema, timeout: cfg.Timeout, idleTimeout: cfg.IdleTimeout}
	table := pgx.Identifier{cfg.Schema, "inbox"}.Sanitize()
	// The casts let the statements work in every query exec mode of pgx, those for
	// poolers included, where an id is sent as text.
	insert := `INSERT INTO ` + table + ` AS inbox (handler, event_id, state) VALUES ($1, $2::uuid, `
	i.selectSQL = `SELECT state FROM ` + table + ` WHERE handler = $1 AND event_id = $2::uuid`
	i.handleSQL = insert + `'handled') ON CONFLICT (handler, event_id) DO NOTHING`
	// A replay lifts the poisoning, in the very transaction of its effects.
	i.rehandleSQL = insert + `'handled') ON CONFLICT (handler, event_id) DO UPDATE
		SET state = 'handled', at = clock_timestamp() WHERE inbox.state = 'poisoned'`
	i.poisonSQL = insert + `'poisoned') ON CONFLICT (handler, event_id) DO NOTHING`
	return i, nil
}

// check returns the faults that waiting does not heal: no such table, no privilege, a
// pooler that breaks the pool's exec mode. A database that is away may come back.
func (i *Inbox) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	_, err := pooler.Check(ctx, i.pool)
	if err == nil {
		_, err = i.pool.Exec(ctx, i.selectSQL, "", uuid.Nil)
		err = pooler.Explain(err)
	}
	if errors.Is(err, pooler.ErrExecMode) {
		return fmt.Errorf("look into the inbox of schema %q: %w", i.schema, err)
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return nil
	}
	switch pg.Code { // appendix A of PostgreSQL's manual
	case "42P01", "42703", "3F000": // undefined table or column, invalid schema name
		return fmt.Errorf("look into the inbox of schema %q: %w: call migrations.Up(ctx, pool, %q) first: %w", i.schema, migrations.ErrNotMigrated, i.schema, err)
	case "42501": // insufficient privilege
		return fmt.Errorf("look into the inbox of schema %q: grant SELECT, INSERT and UPDATE on its table inbox to the pool's role: %w", i.schema, err)
	}
	return nil
}

// patient is the inbox of a handler whose attempts take up to attempt: the server
// must not end a transaction whose handler is still at work elsewhere.
func (i *Inbox) patient(attempt time.Duration) *Inbox {
	own := *i
	if own.idleTimeout != NoTimeout {
		own.idleTimeout = max(own.idleTimeout, 2*attempt)
	}
	return &own
}

// state is what is known of k. stateNone: nothing, or somebody is at it.
func (i *Inbox) state(ctx context.Context, k key) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	var state string
	err := i.pool.QueryRow(ctx, i.selectSQL, k.handler, k.event).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) {
		return stateNone, nil
	}
	return state, pooler.Explain(err)
}

// handled records a success, over a poisoning too. The effects are done, so it
// is tried again, for as long as a call may take, with a connection that the
// handler's context can't cancel.
func (i *Inbox) handled(ctx context.Context, k key) error {
	return i.record(ctx, i.rehandleSQL, k)
}

func (i *Inbox) poisoned(ctx context.Context, k key) error {
	return i.record(ctx, i.poisonSQL, k)
}

func (i *Inbox) record(ctx context.Context, sql string, k key) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), i.timeout)
	defer cancel()
	for wait := 20 * time.Millisecond; ; wait *= 2 {
		_, err := i.pool.Exec(ctx, sql, k.handler, k.event)
		if err == nil || !sleep(ctx, nil, wait) {
			return pooler.Explain(err)
		}
	}
}

// begin opens the transaction of an attempt and inserts k's row in it, in one
// round trip. If somebody has the same row in an open transaction, the insert
// waits for its end. fresh is false if k is settled: then nothing is open.
func (i *Inbox) begin(ctx context.Context, k key, replay bool) (tx *effects, fresh bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	conn, err := i.pool.Acquire(ctx)
	if err != nil {
		return nil, false, err
	}
	batch := &pgx.Batch{}
	batch.BeginTx(pgx.TxOptions{})
	if i.idleTimeout != NoTimeout {
		ms := strconv.FormatInt(max(i.idleTimeout.Milliseconds(), 1), 10)
		batch.Queue(`SELECT set_config('idle_in_transaction_session_timeout', $1, true)`, ms)
	}
	sql := i.handleSQL
	if replay {
		sql = i.rehandleSQL
	}
	var inserted int64
	batch.Queue(sql, k.handler, k.event).Exec(func(tag pgconn.CommandTag) error {
		inserted = tag.RowsAffected()
		return nil
	})
	results := conn.Conn().SendBatch(ctx, batch)
	err = results.Close()
	tx = &effects{Tx: results.Tx(), conn: conn}
	if err == nil && inserted == 1 {
		return tx, true, nil
	}
	tx.rollback(i.timeout)
	return nil, false, pooler.Explain(err)
}
