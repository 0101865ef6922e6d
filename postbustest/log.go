package postbustest

import (
	"cmp"
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/migrations"
)

// queryTimeout bounds one read of a helper.
const queryTimeout = 10 * time.Second

// Querier is what the log can be read through: a pool, a connection, a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// InTx is what tx itself has published so far, savepoints that were not undone
// included, and nothing of anybody else. It is read through tx, which must be
// neither ended nor failed. schema may be empty for migrations.DefaultSchema.
func InTx(tx pgx.Tx, schema string) Source {
	// A row's xid is that of the whole transaction, whatever savepoint it was
	// written in; a transaction that has written nothing has none.
	return logSource{db: tx, schema: schema, text: "published in this transaction", where: ` WHERE xid = pg_current_xact_id_if_assigned()`}
}

// InLog is what the log holds, as db sees it: through a pool, what is committed.
// schema may be empty for migrations.DefaultSchema.
func InLog(db Querier, schema string) Source {
	return logSource{db: db, schema: schema, text: "in the log"}
}

type logSource struct {
	db     Querier
	schema string
	text   string
	where  string
}

func (s logSource) place() string { return s.text }

func (s logSource) published(t testing.TB) []events.DomainEvent {
	t.Helper()
	schema := cmp.Or(s.schema, migrations.DefaultSchema)
	if err := migrations.CheckSchema(schema); err != nil {
		t.Fatal(err)
	}
	if isNil(s.db) {
		t.Fatalf("read the log in schema %q: the transaction or pool is nil: pass the one that the code under test uses", schema)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), queryTimeout)
	defer cancel()
	all, err := s.read(ctx, pgx.Identifier{schema, "outbox"}.Sanitize())
	if err != nil {
		t.Fatalf("read the log in schema %q: %v%s", schema, err, wayOut(err, schema))
	}
	return all
}

func (s logSource) read(ctx context.Context, table string) ([]events.DomainEvent, error) {
	rows, err := s.db.Query(ctx, `SELECT partition_key, payload FROM `+table+s.where+` ORDER BY id`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e events.DomainEvent, err error) {
		var key string
		var document []byte
		if err := row.Scan(&key, &document); err != nil {
			return e, err
		}
		if e, err = events.Decode(document); err == nil {
			e.PartitionKey = key // beside the document, as a handler gets it
		}
		return e, err
	})
}

func wayOut(err error, schema string) string {
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "25P02": // in_failed_sql_transaction
		return "; the transaction has failed before: look at the error of the statement that did it"
	case errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000"):
		return "; is the schema's name right? postbustest.Schema makes and migrates one"
	case errors.Is(err, pgx.ErrTxClosed):
		return "; the transaction has ended: look into it before, or use InLog(pool, \"" + schema + "\")"
	}
	return ""
}

func isNil(db Querier) bool {
	if db == nil {
		return true
	}
	v := reflect.ValueOf(db)
	return v.Kind() == reflect.Pointer && v.IsNil()
}
