package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed sql/*.sql
var files embed.FS

// Latest is the schema version this code is written for.
const Latest = 1

// ErrFromTheFuture is wrapped when the schema is newer than this code.
var ErrFromTheFuture = errors.New("the schema was written by a newer version of Postbus")

// ErrNotMigrated is wrapped when the schema is missing or older than this code.
var ErrNotMigrated = errors.New("the schema is not migrated")

type migration struct {
	version int
	name    string
	sql     string
}

// Up brings schema (empty: DefaultSchema) to the latest version, creating it if
// need be. It is safe to call at every start of every process; when there is
// nothing to do it costs two reads. The role needs CREATE on the database, or
// on the schema if that exists already. A schema with the role's own name is not
// created, since the default search_path begins with it.
func Up(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	if schema == "" {
		schema = DefaultSchema
	}
	if err := CheckSchema(schema); err != nil {
		return err
	}
	if pool == nil {
		return fmt.Errorf("migrate schema %q: the pool is nil: pass an open *pgxpool.Pool", schema)
	}
	all, err := load()
	if err != nil {
		return err
	}
	if v, err := Version(ctx, pool, schema); err == nil && v == Latest {
		return nil
	}
	// READ COMMITTED, whatever the role's default: in a stronger level the snapshot
	// is older than the wait for the lock, and hides what was done meanwhile.
	err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error { return up(ctx, tx, schema, all) })
	if err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	return nil
}

func up(ctx context.Context, tx pgx.Tx, schema string, all []migration) error {
	// A transaction lock, because session locks do not survive PgBouncer.
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lockKey(schema)); err != nil {
		return err
	}
	quoted := pgx.Identifier{schema}.Sanitize()
	// Looked up first: CREATE SCHEMA IF NOT EXISTS asks for the privilege even when there is nothing to create.
	var exists bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, schema).Scan(&exists); err != nil {
		return err
	}
	if !exists {
		if err := checkSearchPath(ctx, tx, schema); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `CREATE SCHEMA `+quoted); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS `+quoted+`.schema_migration (
		version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())`); err != nil {
		return err
	}
	var have int
	if err := tx.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM `+quoted+`.schema_migration`).Scan(&have); err != nil {
		return err
	}
	if have > Latest {
		return fmt.Errorf("it is at version %d, this program knows %d: %w; upgrade the program", have, Latest, ErrFromTheFuture)
	}
	for _, m := range all[have:] {
		// The simple protocol takes several statements at once, in every exec mode.
		if _, err := tx.Conn().PgConn().Exec(ctx, strings.ReplaceAll(m.sql, "{schema}", quoted)).ReadAll(); err != nil {
			return fmt.Errorf("migration %s: %w", m.name, err)
		}
		if _, err := tx.Exec(ctx, `INSERT INTO `+quoted+`.schema_migration (version, name) VALUES ($1, $2)`, m.version, m.name); err != nil {
			return fmt.Errorf("migration %s: %w", m.name, err)
		}
	}
	return nil
}

// checkSearchPath refuses to create a schema with the role's own name: the default
// search_path begins with "$user", so that every unqualified table name of the
// application would from then on be looked for in our schema first, and created there.
func checkSearchPath(ctx context.Context, tx pgx.Tx, schema string) error {
	var shadows bool
	err := tx.QueryRow(ctx, `SELECT current_user = $1 AND current_setting('search_path') LIKE '%$user%'`, schema).Scan(&shadows)
	if err == nil && shadows {
		return fmt.Errorf("%w: it has the name of the connection's role, and search_path looks into that schema before public, where the application's own tables are: choose another schema name, or connect as another role", ErrInvalidSchema)
	}
	return err
}

// Querier is what Version needs: a pool, a connection or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Version is the version schema is at; an error that wraps ErrNotMigrated when
// it has none.
func Version(ctx context.Context, db Querier, schema string) (int, error) {
	if err := CheckSchema(schema); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	// to_regclass, so that a missing table is no error that would abort a transaction.
	var table *string
	name := pgx.Identifier{schema, "schema_migration"}.Sanitize()
	if err := db.QueryRow(ctx, `SELECT to_regclass($1)::text`, name).Scan(&table); err != nil {
		return 0, fmt.Errorf("read the version of schema %q: %w", schema, err)
	}
	var v int
	if table != nil {
		if err := db.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM `+name).Scan(&v); err != nil {
			return 0, fmt.Errorf("read the version of schema %q: %w", schema, err)
		}
	}
	if v == 0 {
		return 0, fmt.Errorf("schema %q: %w: call migrations.Up(ctx, pool, %q) before using it", schema, ErrNotMigrated, schema)
	}
	return v, nil
}

// Check is nil when schema is at the version this code is written for; else an
// error that wraps ErrNotMigrated or ErrFromTheFuture and says what to do.
func Check(ctx context.Context, db Querier, schema string) error {
	v, err := Version(ctx, db, schema)
	switch {
	case err != nil:
		return err
	case v < Latest:
		return fmt.Errorf("schema %q is at version %d, this program needs %d: %w: call migrations.Up(ctx, pool, %q)", schema, v, Latest, ErrNotMigrated, schema)
	case v > Latest:
		return fmt.Errorf("schema %q is at version %d, this program knows %d: %w; upgrade the program", schema, v, Latest, ErrFromTheFuture)
	}
	return nil
}

// load reads the embedded files, which are numbered without gaps from 1.
func load() ([]migration, error) {
	names, err := fs.Glob(files, "sql/*.sql")
	if err != nil {
		return nil, err
	}
	all := make([]migration, 0, len(names))
	for i, path := range names { // Glob sorts
		name := strings.TrimSuffix(strings.TrimPrefix(path, "sql/"), ".sql")
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("embedded migration %s: expected number %d", name, i+1)
		}
		sql, err := files.ReadFile(path)
		if err != nil {
			return nil, err
		}
		all = append(all, migration{version, name, string(sql)})
	}
	if len(all) != Latest {
		return nil, fmt.Errorf("embedded migrations: %d files, Latest is %d", len(all), Latest)
	}
	return all, nil
}

// lockKey is the advisory lock of one schema's migration.
func lockKey(schema string) int64 {
	h := fnv.New64a()
	h.Write([]byte("postbus migrate " + schema))
	return int64(h.Sum64())
}
