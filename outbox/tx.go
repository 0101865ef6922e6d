package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrTxEnded is what comes of a durable handler that commits or rolls back the
// transaction that it was given.
var ErrTxEnded = errors.New("the transaction belongs to the durable handler's position: return nil to have it committed, an error to roll it back, and begin a savepoint with tx.Begin")

// Tx is the transaction of a durable handler: a whole pgx.Tx but for its end, which is
// not the handler's. It is of use until the handler returns, to one goroutine.
type Tx struct {
	conn  *pgx.Conn
	base  pgx.Tx // pgx's own view of the transaction, once it is needed
	after []func()
	ended bool // the handler has tried to end it
	over  bool // it has ended
}

var _ pgx.Tx = (*Tx)(nil)

// AfterCommit has f called once the transaction is known to be committed, in order,
// by the goroutine that goes on with the next event. It is best effort, as all that
// lives in memory.
func (t *Tx) AfterCommit(f func()) { t.after = append(t.after, f) }

// Begin begins a savepoint.
func (t *Tx) Begin(ctx context.Context) (pgx.Tx, error) {
	base, err := t.pgx(ctx)
	if err != nil {
		return nil, err
	}
	return base.Begin(ctx)
}

// pgx makes pgx's own transaction out of ours, which was begun by other means: with an
// empty statement in the place of its BEGIN.
func (t *Tx) pgx(ctx context.Context) (pgx.Tx, error) {
	if t.over {
		return nil, pgx.ErrTxClosed
	}
	if t.base == nil {
		base, err := t.conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: ";"})
		if err != nil {
			return nil, err
		}
		t.base = base
	}
	return t.base, nil
}

// Commit is refused.
func (t *Tx) Commit(context.Context) error { return t.refuse() }

// Rollback is refused.
func (t *Tx) Rollback(context.Context) error { return t.refuse() }

func (t *Tx) refuse() error {
	if t.over {
		return pgx.ErrTxClosed
	}
	t.ended = true
	return ErrTxEnded
}

// Exec is pgx.Tx's.
func (t *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if t.over {
		return pgconn.CommandTag{}, pgx.ErrTxClosed
	}
	return t.conn.Exec(ctx, sql, args...)
}

// Query is pgx.Tx's.
func (t *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if t.over {
		return nil, pgx.ErrTxClosed
	}
	return t.conn.Query(ctx, sql, args...)
}

// QueryRow is pgx.Tx's.
func (t *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if t.over {
		return closedRow{}
	}
	return t.conn.QueryRow(ctx, sql, args...)
}

type closedRow struct{}

func (closedRow) Scan(...any) error { return pgx.ErrTxClosed }

// SendBatch is pgx.Tx's.
func (t *Tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if t.over { // nothing is sent under a ctx that has ended
		ended, cancel := context.WithCancelCause(ctx)
		cancel(pgx.ErrTxClosed)
		ctx = ended
	}
	return t.conn.SendBatch(ctx, b)
}

// CopyFrom is pgx.Tx's.
func (t *Tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	if t.over {
		return 0, pgx.ErrTxClosed
	}
	return t.conn.CopyFrom(ctx, table, columns, src)
}

// Prepare is pgx.Tx's.
func (t *Tx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if t.over {
		return nil, pgx.ErrTxClosed
	}
	return t.conn.Prepare(ctx, name, sql)
}

// LargeObjects is pgx.Tx's.
func (t *Tx) LargeObjects() pgx.LargeObjects {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	base, err := t.pgx(ctx)
	if err != nil {
		return pgx.LargeObjects{} // of no use, as those of any closed transaction
	}
	return base.LargeObjects()
}

// Conn is the connection that the transaction is on.
func (t *Tx) Conn() *pgx.Conn { return t.conn }
