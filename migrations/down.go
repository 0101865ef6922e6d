package migrations

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrWouldLose is wrapped when Down refuses because of what the tables hold. The
// text says what that is.
var ErrWouldLose = errors.New("something would be lost")

// lossError is what the file for the way down has said.
type lossError string

func (e lossError) Error() string { return string(e) }
func (e lossError) Unwrap() error { return ErrWouldLose }

// DownOption lets Down lose what it would refuse to lose.
type DownOption uint8

const (
	// DiscardEvents drops the log with events in it that not every relay and durable
	// handler has settled, and parked ones. Nobody will ever publish them.
	DiscardEvents DownOption = iota + 1
	// ForgetHandled drops the inbox with rows in it: handlers take effect again for
	// what brokers deliver again.
	ForgetHandled
)

// Down takes schema (empty: DefaultSchema) back to version to; 0 removes everything
// that Up has created, and nothing else: tables of somebody else's in the same schema
// stay, and so does a schema that Up has found there. Up after Down begins anew, with a
// log of another source.
//
// It refuses with ErrWouldLose as long as the log holds an event that a relay or durable
// handler has yet to settle, or one that is parked, or the inbox a row, unless an option
// says that they may go. Events of transactions that are open are waited for, two seconds
// at most, and counted; then Down keeps the tables to itself until it is done. What
// depends on our tables, such as a view of yours, is not dropped but named by the error.
//
// Stop the programs that use the schema first: afterwards whatever they publish is
// refused with ErrNotMigrated. The pool's role must own the tables, as the one that
// called Up does. Any number of processes may call it at once: one does the work.
func Down(ctx context.Context, pool *pgxpool.Pool, schema string, to int, options ...DownOption) error {
	schema, err := checked(pool, schema)
	if err != nil {
		return err
	}
	if to < 0 || to > Latest {
		return fmt.Errorf("take schema %q down to version %d: there is no such version: use 0, which removes everything, to %d", schema, to, Latest)
	}
	for _, o := range options {
		if o != DiscardEvents && o != ForgetHandled {
			return fmt.Errorf("take schema %q down: option %d does not exist: use DiscardEvents, ForgetHandled or none", schema, o)
		}
	}
	all, err := load()
	if err != nil {
		return err
	}
	err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error { return down(ctx, tx, schema, all, to, options) })
	if err != nil {
		return fmt.Errorf("take schema %q down to version %d: %w", schema, to, err)
	}
	return nil
}

func down(ctx context.Context, tx pgx.Tx, schema string, all []migration, to int, options []DownOption) error {
	have, err := lock(ctx, tx, schema)
	switch {
	case err != nil:
		return err
	case have == none && to == 0:
		return nil
	case have < to:
		return fmt.Errorf("it is at version %d: %w: migrations.Up goes up", max(have, 0), ErrNotMigrated)
	}
	// Said either way: the session may have settings of its own.
	_, err = tx.Exec(ctx, `SELECT set_config('postbus.discard_events', $1, true), set_config('postbus.forget_handled', $2, true)`,
		onOff(slices.Contains(options, DiscardEvents)), onOff(slices.Contains(options, ForgetHandled)))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(all[to:have]) {
		if err := run(ctx, tx, schema, m.down+m.undone()); err != nil {
			return fmt.Errorf("migration %s: %w", m.name, err)
		}
	}
	if to == 0 {
		return run(ctx, tx, schema, schemaDown)
	}
	return nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
