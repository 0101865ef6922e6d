package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// rollbackTimeout bounds a rollback, which the caller's cancel does not reach: a
// connection that cannot do it in this time is closed, and the server then rolls
// back by itself.
const rollbackTimeout = 5 * time.Second

var (
	errCommitInside   = errors.New("the transaction belongs to whoever has begun it (bus.InTx commits it when fn returns nil): remove this call of Commit, or begin a savepoint with tx.Begin")
	errRollbackInside = errors.New("fn or a handler has called Rollback on a transaction that it has not begun (bus.InTx rolls back when fn returns an error): return one, and remove this call of Rollback")
)

// followedTx is the transaction that fn and handlers get: a whole pgx.Tx that
// also tells the scope which savepoints come and go. Commit is not theirs to do.
type followedTx struct {
	pgx.Tx
	scope *scope
}

// Begin begins a savepoint, as that of pgx does.
func (t *followedTx) Begin(ctx context.Context) (pgx.Tx, error) {
	return beginSavepoint(ctx, t.Tx, t.scope)
}

func (t *followedTx) Commit(context.Context) error {
	if t.scope.closed.Load() {
		return pgx.ErrTxClosed
	}
	return errCommitInside
}

// Rollback is carried out, since whoever calls it relies on that, and dooms the
// transaction, since nothing is left that could be committed.
func (t *followedTx) Rollback(ctx context.Context) error {
	err := rollback(ctx, t.Tx)
	if !errors.Is(err, pgx.ErrTxClosed) {
		t.scope.ended = true
		t.scope.doomed(errRollbackInside)
	}
	return err
}

// savepoint is a nested transaction, at any depth.
type savepoint struct {
	pgx.Tx
	scope *scope
	began mark
}

func beginSavepoint(ctx context.Context, parent pgx.Tx, s *scope) (pgx.Tx, error) {
	tx, err := parent.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &savepoint{Tx: tx, scope: s, began: s.mark()}, nil
}

func (p *savepoint) Begin(ctx context.Context) (pgx.Tx, error) {
	return beginSavepoint(ctx, p.Tx, p.scope)
}

// Commit releases the savepoint. One that cannot be released keeps its effects in
// the transaction although its owner is told otherwise, so it dooms.
func (p *savepoint) Commit(ctx context.Context) error {
	err := p.Tx.Commit(ctx)
	if err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		p.scope.doomed(fmt.Errorf("release a savepoint: %w", err))
	}
	return err
}

// Rollback rolls back to the savepoint, even if ctx has ended: pgx would send
// nothing then, and what was meant to be undone would be committed with the rest.
func (p *savepoint) Rollback(ctx context.Context) error {
	err := rollback(ctx, p.Tx)
	switch {
	case err == nil:
		p.scope.rewind(p.began)
	case !errors.Is(err, pgx.ErrTxClosed):
		p.scope.doomed(fmt.Errorf("roll back to a savepoint: %w", err))
	}
	return err
}

func rollback(ctx context.Context, tx pgx.Tx) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	return tx.Rollback(ctx)
}

// The transaction states that a server reports with every answer.
const (
	statusIdle    = 'I' // outside a transaction
	statusAborted = 'E' // a statement has failed; only a rollback helps
)

// txStatus is the state of an open transaction after its last statement, without
// asking the server; 0 if tx has no connection, as a fake may.
func txStatus(tx pgx.Tx) byte {
	conn := tx.Conn()
	if conn == nil || conn.PgConn() == nil {
		return 0
	}
	return conn.PgConn().TxStatus()
}
