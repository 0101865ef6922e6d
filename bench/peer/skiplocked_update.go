package peer

import "github.com/postbus/postbus/bench/harness"

// SkipLockedUpdate marks what is sent, and keeps the rows, as it is usually written:
// SELECT .. FOR UPDATE SKIP LOCKED, publish, UPDATE, COMMIT. One worker keeps the order,
// as ours does.
func SkipLockedUpdate(e *harness.Env) harness.Runner {
	table := e.Table("outbox_by_update")
	s := skipLockedUpdate(e, 1)
	s.take = `SELECT id, topic, partition_key, payload FROM ` + table + ` WHERE sent_at IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED`
	s.mark = `UPDATE ` + table + ` SET sent_at = now() WHERE id = ANY ($1)`
	return harness.Runner{Name: "skip_update", Run: s.run}
}

// SkipLockedUpdateFast is the fastest form of it that we know: one statement takes and
// marks, and two workers share the table, without an order.
func SkipLockedUpdateFast(e *harness.Env) harness.Runner {
	table := e.Table("outbox_by_update")
	s := skipLockedUpdate(e, 2)
	s.take = `UPDATE ` + table + ` SET sent_at = now() WHERE id = ANY (ARRAY(
			SELECT id FROM ` + table + ` WHERE sent_at IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
		)) RETURNING id, topic, partition_key, payload`
	return harness.Runner{Name: "skip_update_fast", Run: s.run}
}

func skipLockedUpdate(e *harness.Env, workers int) skipLocked {
	return skipLocked{
		e: e, table: "outbox_by_update", workers: workers, batch: 1000,
		create: `CREATE TABLE ` + e.Table("outbox_by_update") + ` (
			id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			created_at    timestamptz NOT NULL DEFAULT now(),
			topic         text  NOT NULL,
			partition_key text  NOT NULL,
			payload       bytea NOT NULL,
			sent_at       timestamptz
		);
		CREATE INDEX ON ` + e.Table("outbox_by_update") + ` (id) WHERE sent_at IS NULL`,
	}
}
