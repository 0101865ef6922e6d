package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// Env is what a comparison runs in: a schema of its own on the server, dropped when
// the comparison has ended, however it did.
type Env struct {
	Quick    bool
	Progress *Progress
	// Schema is empty; Migrate fills it with our tables.
	Schema string
	// Pool has the schema as its search_path, since some peers name no schema.
	Pool *pgxpool.Pool
}

// ErrLeftBehind is wrapped when the schema could not be dropped.
var ErrLeftBehind = errors.New("drop it by hand")

// application is how our sessions are known to the server, and to nobody else's.
var application = fmt.Sprintf("postbus-bench-%d", os.Getpid())

// NewEnv creates a schema. The name says which process it belongs to.
func NewEnv(ctx context.Context, n int, quick bool, progress *Progress) (*Env, error) {
	e := &Env{Quick: quick, Progress: progress, Schema: fmt.Sprintf("postbus_bench_%d_%d", os.Getpid(), n)}
	pool, err := e.NewPool(ctx, 16)
	if err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, "CREATE SCHEMA "+e.Schema); err != nil {
		pool.Close()
		return nil, fmt.Errorf("create the schema of the bench, %s: %w", e.Schema, err)
	}
	e.Pool = pool
	return e, nil
}

// JoinEnv is the environment of a child process, in the schema of its parent.
func JoinEnv(ctx context.Context, schema string) (*Env, error) {
	e := &Env{Schema: schema, Progress: NewProgress(io.Discard, false, 0)}
	pool, err := e.NewPool(ctx, 16)
	e.Pool = pool
	return e, err
}

// NewPool is a pool of its own of up to conns connections; the caller closes it.
func (e *Env) NewPool(ctx context.Context, conns int, options ...func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(Postgres.URL())
	if err != nil {
		return nil, fmt.Errorf("%s is no address of a PostgreSQL: %w", Postgres, err)
	}
	cfg.MaxConns = int32(conns)
	cfg.ConnConfig.RuntimeParams["application_name"] = application
	cfg.ConnConfig.RuntimeParams["search_path"] = e.Schema
	for _, o := range options {
		o(cfg)
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// Migrate creates our tables in the schema.
func (e *Env) Migrate(ctx context.Context) error { return migrations.Up(ctx, e.Pool, e.Schema) }

// Table is the qualified name of a table of the schema.
func (e *Env) Table(name string) string { return pgx.Identifier{e.Schema, name}.Sanitize() }

// Close drops the schema and all that is in it. It heeds no cancellation: Ctrl-C
// leaves nothing behind. Sessions of ours that still hold a lock are ended first.
func (e *Env) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, Postgres.URL())
	if err != nil {
		return fmt.Errorf("drop the schema of the bench, %s: %w; %w", e.Schema, err, ErrLeftBehind)
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", application)
	if err == nil {
		_, err = conn.Exec(ctx, "DROP SCHEMA "+e.Schema+" CASCADE")
	}
	go e.Pool.Close() // a connection that was ended under a caller may never come back
	if err != nil {
		return fmt.Errorf("drop the schema of the bench, %s: %w; %w", e.Schema, err, ErrLeftBehind)
	}
	return nil
}

// Pick is quick in a quick run, else full.
func Pick[T any](e *Env, full, quick T) T {
	if e.Quick {
		return quick
	}
	return full
}
