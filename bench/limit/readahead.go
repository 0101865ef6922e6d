package limit

import (
	"context"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// row is one event of the log as a loop reads it.
type row struct {
	id                          int64
	version                     int32
	event                       uuid.UUID
	eventType, key, contentType string
	payload                     []byte
}

// anySource is as long as what stands before the id in our own header.
const anySource = "00000000-0000-0000-0000-000000000000/1/"

// readAhead is the first half of every loop: one streaming SELECT, without order and
// without a cursor, whose rows are encoded and handed on a batch at a time, a few batches ahead
// of whoever sends them. The channel is closed at the end; then failure gives the error.
func readAhead[T any](ctx context.Context, pool *pgxpool.Pool, table string, rows, batch int, encode func(*row) (T, error)) (batches <-chan []T, failure func() error) {
	out := make(chan []T, 4)
	ended := make(chan error, 1)
	go func() {
		defer close(out)
		ended <- read(ctx, pool, table, rows, batch, encode, out)
	}()
	return out, func() error { return <-ended }
}

func read[T any](ctx context.Context, pool *pgxpool.Pool, table string, rows, size int, encode func(*row) (T, error), out chan<- []T) error {
	result, err := pool.Query(ctx, `SELECT id, schema_version, event_id, event_type, partition_key, content_type, payload FROM `+table+` LIMIT $1`, rows)
	if err != nil {
		return err
	}
	defer result.Close()
	send := func(batch []T) error {
		select {
		case out <- batch:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	batch := make([]T, 0, size)
	for result.Next() {
		var r row
		if err := result.Scan(&r.id, &r.version, &r.event, &r.eventType, &r.key, &r.contentType, &r.payload); err != nil {
			return err
		}
		t, err := encode(&r)
		if err != nil {
			return err
		}
		if batch = append(batch, t); len(batch) == size {
			if err := send(batch); err != nil {
				return err
			}
			batch = make([]T, 0, size)
		}
	}
	if len(batch) > 0 {
		if err := send(batch); err != nil {
			return err
		}
	}
	return result.Err()
}
