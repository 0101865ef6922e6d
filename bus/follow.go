package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/jackc/pgx/v5"
)

// Tx is a transaction that the caller has begun and the bus follows. See [Follow].
type Tx struct {
	pgx.Tx
	scope *scope
	ended bool
}

var (
	errFollowNothing = errors.New("follow: the tx is nil: pass the transaction that you have begun")
	errFollowNoCtx   = errors.New("follow: the ctx is nil: pass the one of the request, or context.Background()")
	errFollowed      = errors.New("follow: the transaction is followed already: publish through it as it is")
	errFollowInner   = errors.New("follow: this is a savepoint, and its end is not that of its transaction: follow the transaction, and begin the savepoint on what Follow returns")
	errStillOpen     = errors.New("committed: the transaction is still open: commit it first, or call Commit on the followed Tx, which does both")
)

// Follow follows a transaction that the caller has begun and will end, so that the
// after-commit handlers of what is published in it are called as under [InTx]:
//
//	raw, err := pool.Begin(ctx)
//	tx, err := bus.Follow(ctx, raw)
//	defer tx.Rollback(ctx)
//	err = eventBus.Publish(ctx, tx, order.Placed{OrderID: o.ID})
//	err = tx.Commit(ctx) // and then the after-commit handlers
//
// Use tx in place of raw from here on: its savepoints are followed, and its Commit
// and Rollback end the transaction. If somebody else must commit raw, call
// [Tx.Committed] when that has succeeded, and tx.Rollback otherwise. Publish wants
// tx itself or a savepoint begun on it; of a wrapper around it, or of raw, it
// knows nothing.
//
// If neither Commit nor Rollback nor Committed is ever called, no after-commit
// handler is: events that were committed all the same are in the log, and go the
// way of all others. It is made visible as soon as the garbage collector finds the
// Tx dropped: [Config].OnForgotten is told, which logs a warning by default. A
// process that ends before that says nothing.
//
// Follow refuses a transaction that is followed already, a savepoint, and one that
// has ended (pgx.ErrTxClosed). ctx is that of the handler or request, for its
// chain of events; it need not outlive the call. A Tx serves one goroutine at a
// time.
func Follow(ctx context.Context, tx pgx.Tx) (*Tx, error) {
	if ctx == nil {
		return nil, errFollowNoCtx
	}
	if isNil(tx) {
		return nil, errFollowNothing
	}
	switch tx.(type) {
	case *Tx, *followedTx, *savepoint:
		return nil, errFollowed
	}
	if fmt.Sprintf("%T", tx) == "*pgx.dbSimulatedNestedTx" { // pgx keeps the type to itself
		return nil, errFollowInner
	}
	if hasEnded(ctx, tx) {
		return nil, fmt.Errorf("follow: the transaction is already committed or rolled back: %w", pgx.ErrTxClosed)
	}
	s := newScope(ctx, tx, followed)
	s.reminder = &reminder{}
	t := &Tx{Tx: tx, scope: s}
	runtime.AddCleanup(t, (*reminder).forgotten, s.reminder)
	return t, nil
}

// hasEnded asks tx without a round trip. The state of its connection will not do:
// that may be somebody else's by now.
func hasEnded(ctx context.Context, tx pgx.Tx) bool {
	return errors.Is(tx.SendBatch(ctx, &pgx.Batch{}).Close(), pgx.ErrTxClosed)
}

// Begin begins a savepoint, which is followed too.
func (t *Tx) Begin(ctx context.Context) (pgx.Tx, error) {
	return beginSavepoint(ctx, t.Tx, t.scope)
}

// Commit commits the transaction and then calls the after-commit handlers, all by
// the rules of [InTx]: it returns nil once the commit is known, whatever handlers
// do; a transaction that a failed Publish has doomed, or whose ctx has ended, is
// rolled back; if the answer to COMMIT was lost, the error is a
// *[CommitUnknownError]. In any case the transaction has ended when Commit returns.
//
// If it had ended before, the error wraps pgx.ErrTxClosed and nothing is
// announced: [Tx.Committed] is for a commit by somebody else.
func (t *Tx) Commit(ctx context.Context) error {
	switch {
	case t.ended:
		return pgx.ErrTxClosed
	case hasEnded(ctx, t.Tx):
		return fmt.Errorf("commit: somebody else has ended the transaction: if it was committed, call Committed instead: %w", pgx.ErrTxClosed)
	}
	sent := false
	defer func() { // also when the driver panics
		t.end()
		if !sent {
			_ = rollback(ctx, t.Tx)
		}
	}()
	sent, err := t.scope.commit(ctx, t.Tx, "commit")
	if err != nil {
		return err
	}
	t.end()
	runAfterCommit(t.scope.announcements)
	return nil
}

// Rollback rolls the transaction back, even if ctx has ended, and nothing is
// announced. After Commit or Committed it does nothing and returns
// pgx.ErrTxClosed, so that it may be deferred.
func (t *Tx) Rollback(ctx context.Context) error {
	if t.ended {
		return pgx.ErrTxClosed
	}
	t.end()
	return rollback(ctx, t.Tx)
}

// Committed says that somebody else has committed the transaction: the relay is
// woken, and the after-commit handlers are called as by Commit. Only the caller
// knows that it was a commit and no rollback.
//
// It refuses a transaction that is still open, and a second call. A *[DoomedError]
// says that a Publish in it had failed, and what was committed may be half of what
// was meant; after-commit handlers have been called for what is in the log.
func (t *Tx) Committed(ctx context.Context) error {
	if t.ended {
		return fmt.Errorf("committed: that is known already, or the Tx was rolled back: %w", pgx.ErrTxClosed)
	}
	if !hasEnded(ctx, t.Tx) && txStatus(t.Tx) != statusIdle {
		return errStillOpen
	}
	t.end()
	t.scope.wake()
	runAfterCommit(t.scope.announcements)
	return t.scope.doom()
}

func (t *Tx) end() {
	t.ended = true
	t.scope.close()
	t.scope.reminder.rewind(0)
}
