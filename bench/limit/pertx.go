package limit

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// PerTx is the limit of durable: a loop that reads events ahead in order, and for each
// begins a transaction with its time limits, inserts the link past it, does the
// handler's one UPDATE, and commits: the same statements as ours, in the same three
// round trips. It knows no lease, no second process, no late event and no failure.
// links is a table like our relay_link. It gives events a second.
func PerTx(ctx context.Context, pool *pgxpool.Pool, outbox, links, update string, rows int) (float64, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()

	began := time.Now()
	const (
		ahead  = 1000
		limits = `SELECT set_config('synchronous_commit',
	CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true),
	set_config('idle_in_transaction_session_timeout', '5000', true), set_config('statement_timeout',
	CASE WHEN current_setting('statement_timeout')::interval BETWEEN '1 ms' AND '5000 ms' THEN current_setting('statement_timeout') ELSE '5000' END, true)`
	)
	link := `INSERT INTO ` + links + ` (relay, slot_from, slot_to, n, holder, round, last_id) VALUES ($1, $2, $3,
	CASE WHEN $4::bigint = 1 THEN 1 ELSE (SELECT n + 1 FROM ` + links + ` WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 AND n = $4::bigint - 1 AND holder = $5::uuid) END,
	$5::uuid, $6, $7)`
	const holder = "5f0f5b9e-0c57-4f8b-9d5e-6e0f6a3b7c11"
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
			batch.Queue("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
			batch.Queue(limits)
			batch.Queue(link, "loop", 0, 255, done+1, holder, 1, e.ID)
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
