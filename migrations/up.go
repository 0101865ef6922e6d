package migrations

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Latest is the schema version this code is written for.
const Latest = 1

// ErrFromTheFuture is wrapped when the schema is newer than this code.
var ErrFromTheFuture = errors.New("the schema was written by a newer version of Postbus")

// ErrNotMigrated is wrapped when the schema is missing or older than this code.
var ErrNotMigrated = errors.New("the schema is not migrated")

// Up brings schema (empty: DefaultSchema) to the latest version, creating it if
// need be. It is safe to call at every start of every process; when there is
// nothing to do it costs two reads. The role needs CREATE on the database, or
// on the schema if that exists already. A schema with the role's own name is not
// created, since the default search_path begins with it.
func Up(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	schema, err := checked(pool, schema)
	if err != nil {
		return err
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
	have, err := lock(ctx, tx, schema)
	if err != nil {
		return err
	}
	if have == none {
		if err := run(ctx, tx, schema, schemaUp); err != nil {
			return err
		}
		have = 0
	}
	for _, m := range all[have:] {
		if err := run(ctx, tx, schema, m.up+m.applied()); err != nil {
			return fmt.Errorf("migration %s: %w", m.name, err)
		}
	}
	return nil
}

// none is the version of a schema that does not exist, or has no list of what was applied.
const none = -1

// lock waits for whoever is migrating the schema, until the end of the
// transaction, and returns the version they have left behind.
func lock(ctx context.Context, tx pgx.Tx, schema string) (have int, err error) {
	// A transaction lock, because session locks do not survive PgBouncer.
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lockKey(schema)); err != nil {
		return 0, err
	}
	// Not to_regclass, which answers from a cache that the wait has not brought up to date.
	var exists bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = $1 AND tablename = 'schema_migration')`, schema).Scan(&exists); err != nil {
		return 0, err
	}
	if !exists {
		return none, nil
	}
	if err := tx.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM `+pgx.Identifier{schema, "schema_migration"}.Sanitize()).Scan(&have); err != nil {
		return 0, err
	}
	if have > Latest {
		return 0, fmt.Errorf("it is at version %d, this program knows %d: %w; upgrade the program", have, Latest, ErrFromTheFuture)
	}
	return have, nil
}

// run runs one of our files. The simple protocol takes several statements at once,
// in every exec mode.
func run(ctx context.Context, tx pgx.Tx, schema, sql string) error {
	_, err := tx.Conn().PgConn().Exec(ctx, fill(sql, schema)).ReadAll()
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		switch refused.Code { // those that our files raise
		case "PB001":
			return lossError(refused.Message)
		case "PB002":
			return fmt.Errorf("%w: %s", ErrInvalidSchema, refused.Message)
		case "2BP01": // dependent objects still exist
			return fmt.Errorf("%w: %s", err, refused.Detail)
		}
	}
	return err
}

// checked is the schema that is meant.
func checked(pool *pgxpool.Pool, schema string) (string, error) {
	if schema == "" {
		schema = DefaultSchema
	}
	if err := CheckSchema(schema); err != nil {
		return "", err
	}
	if pool == nil {
		return "", fmt.Errorf("migrate schema %q: the pool is nil: pass an open *pgxpool.Pool", schema)
	}
	return schema, nil
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

// lockKey is the advisory lock of one schema's migration.
func lockKey(schema string) int64 {
	h := fnv.New64a()
	h.Write([]byte("postbus migrate " + schema))
	return int64(h.Sum64())
}
