package testkit

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// lockWait is for sessions that are about to end: a killed child's, say.
const lockWait = 10 * time.Second

// KeepVariable, set to anything, has schemas of failed tests kept, to be
// looked into. Whoever has kept them drops them.
const KeepVariable = "POSTBUS_TEST_KEEP"

// Schema is the name of a schema that belongs to the test. Nothing is created;
// what exists under the name when the test ends is dropped, on PG15 or on the
// servers given, but see KeepVariable.
//
// The drop logs in to the server itself, past any pooler. It waits ten seconds
// for locks, then fails the test and tells who holds them.
func Schema(t testing.TB, on ...Server) string {
	t.Helper()
	name := uniqueName(t)
	if len(on) == 0 {
		on = []Server{PG15}
	}
	for _, server := range on {
		address := URL(t, server.direct()) // now: a missing server fails the test at its start
		t.Cleanup(func() {
			if os.Getenv(KeepVariable) != "" && t.Failed() {
				t.Logf("the schema %s is kept, on the server of %s", name, server.direct())
				return
			}
			if err := dropSchema(address, name, lockWait); err != nil {
				t.Error(err)
			}
		})
	}
	return name
}

// CreateSchema is Schema for tests that want it to exist.
func CreateSchema(t testing.TB, on ...Server) string {
	t.Helper()
	name := Schema(t, on...)
	if len(on) == 0 {
		on = []Server{PG15}
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	for _, server := range on {
		conn, err := pgx.Connect(ctx, URL(t, server.direct()))
		if err != nil {
			t.Fatalf("create schema %s: %v", name, err)
		}
		_, err = conn.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{name}.Sanitize())
		conn.Close(ctx)
		if err != nil {
			t.Fatalf("create schema %s: %v", name, err)
		}
	}
	return name
}

func dropSchema(address, name string, lockWait time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return fmt.Errorf("drop schema %s: %w", name, err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, fmt.Sprintf("SET lock_timeout = %d", lockWait.Milliseconds())); err != nil {
		return fmt.Errorf("drop schema %s: %w", name, err)
	}
	if _, err := conn.Exec(ctx, "DROP SCHEMA IF EXISTS "+pgx.Identifier{name}.Sanitize()+" CASCADE"); err != nil {
		return fmt.Errorf("drop schema %s: %w; sessions with locks in it: %s", name, err, holders(ctx, conn, name))
	}
	return nil
}

// holdersSQL finds the sessions that hold a lock on a table of the schema.
const holdersSQL = `
SELECT DISTINCT format('pid %s (%s, %s): %s', a.pid, coalesce(nullif(a.application_name, ''), 'no name'), a.state, left(a.query, 200))
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation AND l.locktype = 'relation'
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE n.nspname = $1 AND l.granted AND l.pid <> pg_backend_pid()`

func holders(ctx context.Context, conn *pgx.Conn, schema string) string {
	rows, err := conn.Query(ctx, holdersSQL, schema)
	if err != nil {
		return err.Error()
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err.Error()
	}
	if len(found) == 0 {
		return "none any more"
	}
	return strings.Join(found, "; ")
}
