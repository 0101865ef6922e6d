package outbox

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// ErrTxEnded is what comes of a durable handler that commits or rolls back the
// transaction that it was given.
var ErrTxEnded = errors.New("the transaction belongs to the durable handler's position: return nil to have it committed, an error to roll it back, and begin a savepoint with tx.Begin")

// Tx is the transaction of a durable handler: a whole pgx.Tx but for its end, which is
// not the handler's.
type Tx struct {
	pgx.Tx
	after []func()
	ended bool
}

// Commit is refused.
func (t *Tx) Commit(context.Context) error {
	t.ended = true
	return ErrTxEnded
}

// Rollback is refused.
func (t *Tx) Rollback(context.Context) error {
	t.ended = true
	return ErrTxEnded
}

// AfterCommit has f called once the transaction is known to be committed, in order,
// by the goroutine that goes on with the next event. It is best effort, as all that
// lives in memory.
func (t *Tx) AfterCommit(f func()) { t.after = append(t.after, f) }
