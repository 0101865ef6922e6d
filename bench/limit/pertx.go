package limit

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// PerTx is the limit of durable: a loop that reads events ahead in order, and for each
// begins a transaction, inserts the step past it, does the handler's one UPDATE, and
// commits: the same statements in the same three round trips. It knows no lease, no
// second process, no late event and no failure. It gives events a second.
func PerTx(ctx context.Context, pool *pgxpool.Pool, outbox, steps, update string, rows int) (float64, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()

	began := time.Now()
	const ahead = 1000
	last, done := int64(0), 0
	for done < rows {
		result, err := conn.Query(ctx, `SELECT id, partition_key, payload FROM `+outbox+` WHERE id > $1 ORDER BY id LIMIT $2`, last, ahead)
		if err != nil {
			return 0, err
		}
		type event struct {
			ID      int64
			Key     string
			Payload []byte
		}
		events, err := pgx.CollectRows(result, pgx.RowToStructByPos[event])
		if err != nil {
			return 0, err
		}
		for _, e := range events[:min(len(events), rows-done)] {
			batch := &pgx.Batch{}
			batch.Queue("BEGIN")
			batch.Queue(`INSERT INTO `+steps+` (n, last_id) VALUES ($1, $2)`, e.ID, e.ID)
			if err := conn.SendBatch(ctx, batch).Close(); err != nil {
				return 0, err
			}
			if _, err := conn.Exec(ctx, update, e.Key); err != nil {
				return 0, err
			}
			if _, err := conn.Exec(ctx, "COMMIT"); err != nil {
				return 0, err
			}
			last = e.ID
			done++
		}
	}
	return float64(done) / time.Since(began).Seconds(), nil
}
