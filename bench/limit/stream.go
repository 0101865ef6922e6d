// Package limit holds what ours is measured against: the fastest program that does the
// bare work, and gives none of the guarantees. Each stands in a file of its own.
package limit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Stream is the limit of drain.null: one SELECT of the log's rows, streamed by pgx in
// its binary format, every byte of every column copied once. No cursor, no lanes, no
// position, nobody to hand a row to. It gives rows a second.
//
// It asks for no order, so that the server may read the table as it lies on the disk,
// and takes the values raw, without pgx's decoding.
func Stream(ctx context.Context, pool *pgxpool.Pool, table string, rows int) (float64, error) {
	return stream(ctx, pool, table, rows)
}

// StreamOrdered is the same in the order of the ids, which whoever drains a log needs:
// beside Stream it shows what the order alone costs the server.
func StreamOrdered(ctx context.Context, pool *pgxpool.Pool, table string, rows int) (float64, error) {
	return stream(ctx, pool, table+" WHERE id > 0 ORDER BY id", rows)
}

func stream(ctx context.Context, pool *pgxpool.Pool, from string, rows int) (float64, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()

	began := time.Now()
	result, err := conn.Query(ctx, `SELECT xid, id, slot, schema_version, event_id, topic, event_type, partition_key, content_type, headers, payload FROM `+from)
	if err != nil {
		return 0, err
	}
	defer result.Close()
	n := 0
	var copied [1 << 16]byte
	for result.Next() {
		at := 0
		for _, value := range result.RawValues() {
			at += copy(copied[at:], value)
		}
		n++
	}
	if err := result.Err(); err != nil {
		return 0, err
	}
	if n != rows {
		return 0, fmt.Errorf("the streaming SELECT found %d rows instead of %d", n, rows)
	}
	return float64(n) / time.Since(began).Seconds(), nil
}
