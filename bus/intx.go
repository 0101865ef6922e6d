package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TxBeginner begins transactions: *pgxpool.Pool, *pgxpool.Conn, *pgx.Conn. A
// pgx.Tx is none, since InTx inside a transaction would be another one.
type TxBeginner interface {
	BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
}

// ErrDoomed is wrapped by a *[DoomedError].
var ErrDoomed = errors.New("the transaction was doomed")

// DoomedError says why InTx, or a Commit of a followed [Tx], rolled back although
// fn returned nil, or why a transaction of the caller's must be rolled back
// although all handlers returned nil.
type DoomedError struct {
	Err error // usually what a Publish had returned to fn or a handler, which went on
}

func (e *DoomedError) Error() string {
	return fmt.Sprintf("%v, although nil was returned: return the error, or keep what may fail in a savepoint (pgx.BeginFunc): %v", ErrDoomed, e.Err)
}

// Unwrap gives ErrDoomed and the cause.
func (e *DoomedError) Unwrap() []error { return []error{ErrDoomed, e.Err} }

// InTx begins a transaction on db, calls fn in it, commits, and then calls the
// after-commit handlers of all events that were published in it. It returns nil
// once the commit is known, whatever those handlers do.
//
// fn gets the transaction, a whole pgx.Tx. Its savepoints (tx.Begin,
// pgx.BeginFunc, to any depth) are followed: what is published in one that is
// rolled back is not announced. Savepoints made by SQL text are not seen. Commit
// and Rollback of tx are InTx's to call, not fn's. The ctx that fn gets is the caller's, and
// knows the transaction; it is to be passed on. tx may not be shared with
// goroutines that fn starts: a transaction is one conversation on one connection.
//
// It rolls back, and nothing is announced:
//
//   - if fn returns an error: InTx returns that error as it is;
//   - if fn panics, or ends its goroutine, which goes on after the rollback;
//   - if a Publish failed, or fn ended the transaction, and fn returned nil all
//     the same: a *[DoomedError];
//   - if a statement failed and fn returned nil all the same: an error that wraps
//     pgx.ErrTxCommitRollback;
//   - if ctx has ended when fn returns: an error that wraps ctx.Err() and its cause;
//   - if the server refuses the commit (a deferred constraint, a serialization
//     failure): an error that wraps its *pgconn.PgError.
//
// If the answer to COMMIT was lost, InTx returns a *[CommitUnknownError]: the
// transaction may be committed. Then nothing is announced and nothing retried.
// Once COMMIT is sent, the end of ctx leaves the server five more seconds to
// answer, so that a caller who gives up seldom brings this about.
//
// With [RetryConflicts], fn is called again after a serialization failure or a
// deadlock, in a new transaction that knows nothing of the first. fn must then not
// change anything outside the transaction.
//
// InTx inside fn begins a second transaction, independent of the first, on a
// second connection; two of them may well wait for each other. It may be called
// by several goroutines.
func InTx(ctx context.Context, db TxBeginner, fn func(ctx context.Context, tx pgx.Tx) error, opts ...TxOption) error {
	if ctx == nil {
		return errors.New("InTx: the ctx is nil: pass the one of the request, or context.Background()")
	}
	var cfg txConfig
	var faults []error
	if isNil(db) {
		faults = append(faults, errors.New("db is nil: pass a *pgxpool.Pool"))
	}
	if fn == nil {
		faults = append(faults, errors.New("fn is nil: pass what is to be done in the transaction"))
	}
	for _, o := range opts {
		if o == nil {
			continue
		}
		if err := o(&cfg); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("InTx: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	if cfg.attempts > 1 {
		return retry(ctx, cfg.attempts, func() error { return attempt(ctx, db, cfg.tx, fn) })
	}
	return attempt(ctx, db, cfg.tx, fn)
}

func attempt(ctx context.Context, db TxBeginner, opts pgx.TxOptions, fn func(context.Context, pgx.Tx) error) error {
	if err := checkIdle(db); err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("InTx: begin: %w", err)
	}
	s := newScope(ctx, tx, ours)
	defer s.close()
	sent := false
	defer func() { // also when fn panics or ends the goroutine
		if !sent {
			_ = rollback(ctx, tx) // pgx closes a connection that cannot roll back: that does it too
		}
	}()

	if err := fn(withFrame(ctx, frame{scope: s, chain: s.chain}), &followedTx{Tx: tx, scope: s}); err != nil {
		return err
	}
	sent, err = s.commit(ctx, tx, "InTx")
	if err != nil {
		return err
	}
	runAfterCommit(s.announcements)
	return nil
}

// checkIdle refuses a connection that is in a transaction already: Postgres would
// only warn, and commit what is not ours.
func checkIdle(db TxBeginner) error {
	var conn *pgconn.PgConn
	switch db := db.(type) {
	case *pgx.Conn:
		conn = db.PgConn()
	case interface{ Conn() *pgx.Conn }: // *pgxpool.Conn
		conn = db.Conn().PgConn()
	}
	if conn == nil || conn.IsClosed() || conn.TxStatus() == statusIdle {
		return nil
	}
	return errors.New("InTx: the connection is in a transaction already: end that first, or pass a pool; inside a transaction use a savepoint (pgx.BeginFunc)")
}

// isNil sees a nil pointer inside an interface too.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	return r.Kind() == reflect.Pointer && r.IsNil()
}
