package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// objects are the tables, sequences and indexes of a schema.
func objects(t *testing.T, pool *pgxpool.Pool, schema string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace($1) ORDER BY 1`, schema)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Twenty connections at once, as twenty processes have: each returns nil, and the
// migration has run once. Whatever isolation is the role's default: a transaction
// that has waited for the one at work must see what that has done.
func TestUpTwentyAtOnce(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, isolation := range []string{"read committed", "repeatable read", "serializable"} {
			if which == testkit.PgBouncer && isolation != "read committed" {
				continue // it passes no such setting on
			}
			t.Run(fmt.Sprintf("%s/%s", which, isolation), func(t *testing.T) {
				t.Parallel()
				pool := testkit.Postgres(t, which, func(cfg *pgxpool.Config) {
					cfg.MaxConns = 20
					if which != testkit.PgBouncer {
						cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = isolation
					}
				})
				for range 4 {
					schema := testkit.Schema(t, which)
					var all sync.WaitGroup
					start := make(chan struct{})
					for i := range 20 {
						all.Go(func() {
							<-start
							if err := migrations.Up(t.Context(), pool, schema); err != nil {
								t.Errorf("process %d: %v", i, err)
							}
						})
					}
					close(start)
					all.Wait()
					if err := migrations.Check(t.Context(), pool, schema); err != nil {
						t.Error(err)
					}
					var n int
					if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+schema+`.schema_migration WHERE version > 0`).Scan(&n); err != nil || n != migrations.Latest {
						t.Errorf("%d migrations applied, want %d (error %v)", n, migrations.Latest, err)
					}
					if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM `+schema+`.outbox_source`).Scan(&n); err != nil || n != 1 {
						t.Errorf("%d sources, want 1 (error %v)", n, err)
					}
				}
			})
		}
	}
}

// A migration that breaks off leaves nothing behind, and can be tried again.
func TestUpIsAtomic(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			pool, schema := testkit.Postgres(t, which), testkit.CreateSchema(t, which)
			exec(t, pool, `CREATE TABLE `+schema+`.inbox ()`) // what the migration makes last
			err := migrations.Up(t.Context(), pool, schema)
			if err == nil || !strings.Contains(err.Error(), schema) || !strings.Contains(err.Error(), "inbox") {
				t.Errorf("migrate a schema with a table in the way: %v, want one that names both", err)
			}
			if left := objects(t, pool, schema); len(left) != 1 || left[0] != "inbox" {
				t.Errorf("left behind: %v", left)
			}
			if err := migrations.Check(t.Context(), pool, schema); !errors.Is(err, migrations.ErrNotMigrated) {
				t.Errorf("check: %v, want ErrNotMigrated", err)
			}
			exec(t, pool, `DROP TABLE `+schema+`.inbox`)

			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := migrations.Up(ctx, pool, schema); !errors.Is(err, context.Canceled) {
				t.Errorf("migrate with a cancelled context: %v", err)
			}
			if err := migrations.Up(t.Context(), pool, schema); err != nil {
				t.Error(err)
			}
			if err := migrations.Check(t.Context(), pool, schema); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUpRefusesTheFuture(t *testing.T) {
	t.Parallel()
	pool, schema := testkit.Postgres(t, testkit.PG15), testkit.Schema(t)
	if err := migrations.Up(t.Context(), pool, schema); err != nil {
		t.Fatal(err)
	}
	before := objects(t, pool, schema)
	exec(t, pool, fmt.Sprintf(`INSERT INTO %s.schema_migration VALUES (%d, 'later')`, schema, migrations.Latest+1))
	for name, err := range map[string]error{
		"Up":    migrations.Up(t.Context(), pool, schema),
		"Check": migrations.Check(t.Context(), pool, schema),
	} {
		if !errors.Is(err, migrations.ErrFromTheFuture) || !strings.Contains(err.Error(), "upgrade the program") {
			t.Errorf("%s: %v, want ErrFromTheFuture and the way out", name, err)
		}
	}
	if after := objects(t, pool, schema); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("a schema from the future was changed: %v, then %v", before, after)
	}
}

func TestUpRefusesBadArguments(t *testing.T) {
	t.Parallel()
	pool, schema := testkit.Postgres(t, testkit.PG15), testkit.Schema(t)
	if err := migrations.Up(t.Context(), nil, schema); err == nil || !strings.Contains(err.Error(), "pool is nil") {
		t.Errorf("nil pool: %v", err)
	}
	if err := migrations.Up(t.Context(), pool, `x"; DROP`); !errors.Is(err, migrations.ErrInvalidSchema) {
		t.Errorf("a name that needs quotes: %v, want ErrInvalidSchema", err)
	}
	if err := migrations.Check(t.Context(), pool, schema); !errors.Is(err, migrations.ErrNotMigrated) || !strings.Contains(err.Error(), "migrations.Up") {
		t.Errorf("check before the migration: %v, want ErrNotMigrated and the way out", err)
	}
	// Version's question does not abort a transaction that asks it.
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if _, err := migrations.Version(t.Context(), tx, schema); !errors.Is(err, migrations.ErrNotMigrated) {
			t.Errorf("version before the migration: %v, want ErrNotMigrated", err)
		}
		_, err := tx.Exec(t.Context(), `SELECT 1`)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A role that owns its schema, and may not create others, can migrate it.
func TestUpWithoutCreateOnTheDatabase(t *testing.T) {
	t.Parallel()
	admin, schema := testkit.Postgres(t, testkit.PG15), testkit.CreateSchema(t)
	role := schema + "_owner"
	exec(t, admin, `CREATE ROLE `+role)
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := admin.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	exec(t, admin, `GRANT USAGE, CREATE ON SCHEMA `+schema+` TO `+role)
	pool := testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = role })
	if err := migrations.Up(t.Context(), pool, schema); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Check(t.Context(), pool, schema); err != nil {
		t.Error(err)
	}
	if err := migrations.Up(t.Context(), pool, schema); err != nil {
		t.Errorf("again, with nothing to do: %v", err)
	}
}

// A schema with the role's own name would shadow the application's tables; one
// that search_path does not look into shadows nothing.
func TestUpRefusesTheRolesOwnName(t *testing.T) {
	t.Parallel()
	direct := testkit.Postgres(t, testkit.PG15)
	role := testkit.Schema(t)
	exec(t, direct, `CREATE ROLE `+role+` LOGIN SUPERUSER`)
	t.Cleanup(func() {
		for _, sql := range []string{`DROP SCHEMA IF EXISTS ` + role + ` CASCADE`, `DROP ROLE ` + role} {
			if _, err := direct.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	as := func(path string) *pgxpool.Pool {
		return testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) {
			cfg.ConnConfig.User = role
			if path != "" {
				cfg.ConnConfig.RuntimeParams["search_path"] = path
			}
		})
	}
	err := migrations.Up(t.Context(), as(""), role)
	if !errors.Is(err, migrations.ErrInvalidSchema) || !strings.Contains(err.Error(), "choose another schema name") {
		t.Errorf("Up into the role's own name: %v", err)
	}
	if found := objects(t, direct, role); len(found) != 0 {
		t.Errorf("refused, and created %v", found)
	}
	if err := migrations.Up(t.Context(), as("public"), role); err != nil {
		t.Errorf("with a search_path that does not look there: %v", err)
	}
}
