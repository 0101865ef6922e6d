package outbox

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrTxEnded is what comes of a durable handler that commits or rolls back the
// transaction that it was given.
var ErrTxEnded = errors.New("the transaction belongs to the durable handler's position: return nil to have it committed, an error to roll it back, and begin a savepoint with tx.Begin")

// Tx is the transaction of a durable handler: a whole pgx.Tx but for its end, which is
// not the handler's: Commit, Rollback, and a statement that says so are refused with
// ErrTxEnded, and what was written is rolled back. (Not so in the middle of a text of
// several statements, or past Tx through Conn: do not.) It is of use until the handler returns, to one goroutine.
type Tx struct {
	conn  *pgx.Conn
	base  pgx.Tx // pgx's own view of the transaction, once it is needed
	after []func()
	ended bool        // the handler has tried to end it
	over  atomic.Bool // it has ended; a handler that was left behind may still ask
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
	sub, err := base.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &savepoint{sub, t}, nil
}

// pgx makes pgx's own transaction out of ours, which was begun by other means: with an
// empty statement in the place of its BEGIN.
func (t *Tx) pgx(ctx context.Context) (pgx.Tx, error) {
	if t.over.Load() {
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
	if t.over.Load() {
		return pgx.ErrTxClosed
	}
	t.ended = true
	return ErrTxEnded
}

// Exec is pgx.Tx's.
func (t *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if t.over.Load() {
		return pgconn.CommandTag{}, pgx.ErrTxClosed
	}
	if endsTx(sql) {
		return pgconn.CommandTag{}, t.refuse()
	}
	return t.conn.Exec(ctx, sql, args...)
}

// Query is pgx.Tx's.
func (t *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if t.over.Load() {
		return nil, pgx.ErrTxClosed
	}
	if endsTx(sql) {
		return nil, t.refuse()
	}
	return t.conn.Query(ctx, sql, args...)
}

// QueryRow is pgx.Tx's.
func (t *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if t.over.Load() {
		return refusedRow{pgx.ErrTxClosed}
	}
	if endsTx(sql) {
		return refusedRow{t.refuse()}
	}
	return t.conn.QueryRow(ctx, sql, args...)
}

// SendBatch is pgx.Tx's.
func (t *Tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return t.conn.SendBatch(t.sendable(ctx, b), b)
}

// CopyFrom is pgx.Tx's.
func (t *Tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	if t.over.Load() {
		return 0, pgx.ErrTxClosed
	}
	return t.conn.CopyFrom(ctx, table, columns, src)
}

// Prepare is pgx.Tx's.
func (t *Tx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	if t.over.Load() {
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
