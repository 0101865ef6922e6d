package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// database is the relay's access to its tables: every call has a timeout, and no
// transaction stays open while anything else is waited for.
type database struct {
	pool    *pgxpool.Pool
	schema  string
	timeout time.Duration // of one call

	pooled bool // through a pooler that may lose prepared statements: check has found out

	// heavy bounds how many owners that share a pool are at something that may take
	// long, so that connections are left for what must not wait; nil: no bound.
	heavy chan struct{}
}

// enter waits for a place to do something that may take long.
func (d *database) enter(ctx context.Context) error {
	if d.heavy == nil {
		return ctx.Err()
	}
	select {
	case d.heavy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *database) leave() {
	if d.heavy != nil {
		<-d.heavy
	}
}

// table gives the quoted name of a table or sequence of ours.
func (d *database) table(name string) string { return pgx.Identifier{d.schema, name}.Sanitize() }

// statement is one step of a transaction. rows is how many it
// touches unless the database is not as we left it, which is told after the commit.
type statement struct {
	sql  string
	args []any
	rows int64
	scan func(pgx.Row) error
}

const anyRows = -1

// queue adds s to a batch; what it touches wrongly is told in wrong.
func (s statement) queue(batch *pgx.Batch, wrong *error) {
	q := batch.Queue(s.sql, s.args...)
	if s.scan != nil {
		q.QueryRow(s.scan)
		return
	}
	q.Exec(func(tag pgconn.CommandTag) error {
		if s.rows != anyRows && tag.RowsAffected() != s.rows {
			*wrong = fmt.Errorf("a statement touched %d rows instead of %d: %.60s", tag.RowsAffected(), s.rows, s.sql)
		}
		return nil
	})
}

// A role's default may be weaker (off) or stronger (remote_apply) than what a
// link needs: only the former is changed.
const beDurable = `SELECT set_config('synchronous_commit',
	CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)`

const beQuick = `SELECT set_config('synchronous_commit', 'off', true)`

// write runs the statements as one READ COMMITTED transaction, sent in one go: no
// frozen process can leave it open half way, which would make a successor's link
// wait for it. After an error the outcome may be unknown: the caller reloads.
func (d *database) write(ctx context.Context, durable bool, statements ...statement) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// A connection that an error left inside a transaction is thrown away by Release.
	defer conn.Release()

	var batch pgx.Batch
	// Said in full: a role's defaults may be others, and the proof of a round rests on these.
	batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE`)
	if durable {
		batch.Queue(beDurable)
	} else {
		batch.Queue(beQuick)
	}
	var wrong error
	for _, s := range statements {
		s.queue(&batch, &wrong)
	}
	batch.Queue(`COMMIT`).Exec(func(tag pgconn.CommandTag) error {
		if tag.String() != "COMMIT" {
			return pgx.ErrTxCommitRollback
		}
		return nil
	})
	if err := conn.SendBatch(ctx, &batch).Close(); err != nil {
		return err
	}
	return wrong
}

// planPlainly keeps the planner from compiling the query or starting workers for
// it. A table that was never analyzed is taken for so large that it would, for a
// few hundred rows: a window of ids over 2M rows without statistics costs 105,357
// by its estimate, more than jit_above_cost. And it has it go along an index: for a
// plan that is to serve for all values it takes any transaction for one that has
// written a good part of such a table, whose first row a scan of all would meet soon.
const planPlainly = `SELECT set_config('jit', 'off', true), set_config('max_parallel_workers_per_gather', '0', true),
	set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)`

// errAbandon is what a reader of rows returns when it wants no more of very many.
var errAbandon = errors.New("no more of these rows")

// read runs one query over the log, sent in one go with a transaction around it.
// each is called per row and says whether it wants another; rows are valid until
// it returns. Those that it does not want are received all the same, unless it
// returns errAbandon, which costs a connection.
func (d *database) read(ctx context.Context, sql string, args []any, each func(pgx.Rows) (more bool, err error)) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.leave()
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var batch pgx.Batch
	batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY`)
	batch.Queue(planPlainly)
	batch.Queue(sql, args...)
	batch.Queue(`COMMIT`)
	results := d.pool.SendBatch(ctx, &batch)
	defer results.Close()
	for range 2 {
		if _, err := results.Exec(); err != nil {
			return err
		}
	}
	rows, err := results.Query()
	if err != nil {
		return err
	}
	defer rows.Close()
	for more := true; more && rows.Next(); {
		if more, err = each(rows); err == errAbandon {
			cancel() // which closes the connection: what is still to come is not worth reading
			rows.Close()
			return nil
		} else if err != nil {
			return err
		}
	}
	if rows.Close(); rows.Err() != nil {
		return rows.Err()
	}
	return results.Close()
}

// quoteLiteral makes a quoted name a string literal: regclass takes names that way.
// Our names are checked identifiers, so that there is nothing to escape but the rule itself.
func quoteLiteral(name string) string { return `'` + strings.ReplaceAll(name, `'`, `''`) + `'` }
