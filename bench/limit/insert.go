package limit

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bench/workload"
)

// PlainTable is the plain table of append.tx's limit: one bare INSERT, with a primary
// key, of a document that the application has encoded itself.
const PlainTable = `(
	id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	type    text  NOT NULL,
	key     text  NOT NULL,
	payload bytea NOT NULL
)`

// InsertPlain inserts one event in the caller's transaction.
func InsertPlain(ctx context.Context, tx pgx.Tx, table string, o workload.Order) error {
	_, err := tx.Exec(ctx, `INSERT INTO `+table+` (type, key, payload) VALUES ($1, $2, $3)`, o.EventType(), o.OrderID, workload.Encoded(o))
	return err
}
