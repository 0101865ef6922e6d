package handlers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// effects is the transaction of one attempt of HandleTx. The handler sees it as
// a pgx.Tx that it cannot end: with a commit of its own the event would count as
// handled although the handler may still fail.
type effects struct {
	pgx.Tx
	conn  *pgxpool.Conn
	ended atomic.Bool // the handler tried to
}

// Commit is the router's to call.
func (tx *effects) Commit(context.Context) error {
	tx.ended.Store(true)
	return ErrTxEnded
}

// Rollback is the router's to call: a handler that returns nil afterwards does
// not get its work committed.
func (tx *effects) Rollback(context.Context) error {
	tx.ended.Store(true)
	return ErrTxEnded
}

var (
	errCommitUnknown = errors.New("the answer to COMMIT was lost: the inbox will tell whether it happened")
	// errConnectionLost: the database, or the way to it, failed under the handler.
	errConnectionLost = errors.New("the connection to the database was lost under the handler")
)

// finish commits what the handler has done, and returns nil once that is known.
// It takes time of its own: the handler's deadline is for the handler.
func (tx *effects) finish(timeout time.Duration) error {
	if tx.ended.Load() {
		tx.rollback(timeout)
		return ErrTxEnded
	}
	if tx.Tx.Conn().PgConn().IsBusy() {
		tx.rollback(timeout)
		return errors.New("commit the handler's transaction: the connection is still busy: close the Rows and BatchResults that the handler has opened")
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	defer tx.conn.Release()
	err := tx.Tx.Commit(ctx)
	var refused *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return fmt.Errorf("commit the handler's transaction: a statement in it had failed, and the handler returned nil all the same: return the error, or keep what may fail in a savepoint (pgx.BeginFunc): %w", err)
	case errors.As(err, &refused) && !tx.Tx.Conn().IsClosed():
		return fmt.Errorf("commit the handler's transaction: %w", err)
	}
	return &PostponedError{Err: fmt.Errorf("%w: %w", errCommitUnknown, err)}
}

// abandon rolls back after the handler returned cause, and returns what the
// attempt ends with.
func (tx *effects) abandon(timeout time.Duration, cause error) error {
	// pgx closes the connection when a context ends in mid-statement; that is the
	// handler being slow, not the database being away.
	lost := tx.Tx.Conn().IsClosed() &&
		!errors.Is(cause, context.DeadlineExceeded) && !errors.Is(cause, context.Canceled)
	tx.rollback(timeout)
	if lost {
		return &PostponedError{Err: fmt.Errorf("%w: %w", errConnectionLost, cause)}
	}
	return cause
}

func (tx *effects) rollback(timeout time.Duration) {
	defer tx.conn.Release() // closes a connection that is not idle by then
	if tx.Tx == nil || tx.Tx.Conn() == nil || tx.Tx.Conn().IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_ = tx.Tx.Rollback(ctx) // an error leaves a closed connection, which the server rolls back
}
