package testkit

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// connectTimeout bounds a connection to a server that is known to be near.
const connectTimeout = 20 * time.Second

// Postgres is a pool of at most four connections to a shared server, open
// until the test ends: tests run in parallel, and all share the server's 400.
// An option may change the configuration, such as MaxConns.
//
// Behind PgBouncer the pool works in QueryExecModeExec, from its address.
func Postgres(t testing.TB, which Server, options ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	return Pool(t, URL(t, which), options...)
}

// Pool is Postgres for any address: that of a Proxy, or of a PrivateServer.
func Pool(t testing.TB, address string, options ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		t.Fatalf("connect to Postgres for the test: %v", err)
	}
	config.MaxConns = 4
	for _, option := range options {
		option(config)
	}
	return open(t, config)
}

func open(t testing.TB, config *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		t.Fatalf("connect to Postgres for the test: %v", err)
	}
	t.Cleanup(func() { closePool(t, pool) })
	if err := pool.Ping(ctx); err != nil {
		t.Fatalf("connect to Postgres for the test: %v; `make servers-status` shows what runs", err)
	}
	return pool
}

// closePool reports a connection that the test never gave back; Close alone
// would wait for it for ever.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	closed := make(chan struct{})
	go func() { pool.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Errorf("close the test's pool: %d connections were never released; is a transaction or a Rows still open?",
			pool.Stat().AcquiredConns())
	}
}
