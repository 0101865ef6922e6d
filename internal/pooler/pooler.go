// Package pooler tells what a pool's query exec mode is good for behind a pooler of
// connections, such as PgBouncer in transaction mode, which may run each transaction,
// and each single statement, on another connection to the server.
package pooler

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrExecMode is wrapped by every error that says that the exec mode does not do.
var ErrExecMode = errors.New("the pool's query exec mode does not work through this pooler")

const wayOut = "put default_query_exec_mode=exec into the pool's address"

// Check refuses a mode that would go wrong unnoticed. pooled tells that something
// between us and the server has given the session a process id of its own; it is
// looked for only where the mode may go wrong.
func Check(ctx context.Context, pool *pgxpool.Pool) (pooled bool, err error) {
	mode := pool.Config().ConnConfig.DefaultQueryExecMode
	if mode != pgx.QueryExecModeCacheStatement && mode != pgx.QueryExecModeDescribeExec {
		return false, nil // parse, bind and execute in one go
	}
	if pooled, err = Behind(ctx, pool); err != nil || !pooled || mode != pgx.QueryExecModeDescribeExec {
		return pooled, err
	}
	return true, fmt.Errorf("%w: %s describes a statement in one round trip and executes it in the next, for which the pooler may take another connection, where somebody else's statement would be executed in its place: %s",
		ErrExecMode, mode, wayOut)
}

// Behind tells whether there is a pooler between the pool and the server.
func Behind(ctx context.Context, pool *pgxpool.Pool) (is bool, err error) {
	err = pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		var pid uint32
		err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&pid)
		is = pid != conn.Conn().PgConn().PID()
		return err
	})
	return is, err
}

// Lost tells whether err says that a prepared statement is not there, or there
// already: it was prepared on another of the pooler's connections.
func Lost(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "26000" || pg.Code == "42P05") // appendix A of PostgreSQL's manual
}

// Explain adds the way out to such an error, and leaves any other as it is.
func Explain(err error) error {
	if !Lost(err) || errors.Is(err, ErrExecMode) {
		return err
	}
	return fmt.Errorf("%w: it loses prepared statements (PgBouncer before 1.21, or without max_prepared_statements): %s: %w", ErrExecMode, wayOut, err)
}
