package outbox

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// positionsLockClass is the class of the advisory lock behind lockPositions, the
// first of two int4 (classid in pg_locks): "ppos" in ASCII. The second is the oid of
// the schema's table of links.
const positionsLockClass = 0x70706f73

// lockPositions keeps retention from taking rows until the transaction ends: the
// first statement of every transaction that makes a position need more of the log
// than it did before. Such are the creation of a position, a rewind, a rebase, and
// taking a position up again that retention's cap has ended. All that merely moves
// a position forward needs no lock: what a forward move sees late is only kept longer.
//
// It is an advisory lock and not a locked row, because that would draw an xid, and a
// transaction that creates a position reads the sequence before it has one. It ends
// with the transaction, so it works behind PgBouncer. It comes first, so that nobody
// waits for it while holding a link that others wait for. Retention holds it for one
// of its short transactions at a time, and gives up soon when it has to wait.
func (d *database) lockPositions() statement {
	return statement{sql: `SELECT pg_advisory_xact_lock($1::int4, ` + quoteLiteral(d.table("relay_link")) + `::regclass::oid::int4)`,
		args: []any{int32(positionsLockClass)}, rows: 1}
}

// ifStillInLog makes the transaction fail, with an error that isGoneFromLog knows,
// unless the log has all its rows from id on: the statement after lockPositions where
// a position is rewound to id.
func (d *database) ifStillInLog(id int64) statement {
	return statement{sql: `SELECT 1 / (CASE WHEN $1::bigint > floor THEN 1 ELSE 0 END) FROM ` + d.table("retention"),
		args: []any{id}, rows: 1, scan: func(row pgx.Row) error { var one int; return row.Scan(&one) }}
}

// isGoneFromLog tells whether ifStillInLog has made the transaction fail.
func isGoneFromLog(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == codeDivisionByZero
}

const codeDivisionByZero = "22012"

// floor is the id up to which rows of the log may be gone: nobody can be promised
// that a rewind to it, or below, is whole.
func (d *database) floor(ctx context.Context) (floor int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	err = d.pool.QueryRow(ctx, `SELECT floor FROM `+d.table("retention")).Scan(&floor)
	return floor, explain(d.schema, err)
}
