package peer

import "github.com/postbus/postbus/bench/harness"

// SkipLockedDelete deletes what is sent. One worker keeps the order, as ours does.
func SkipLockedDelete(e *harness.Env) harness.Runner {
	s := skipLocked{
		e: e, table: "outbox_by_delete", workers: 1, batch: 1000,
		create: `CREATE TABLE ` + e.Table("outbox_by_delete") + ` (
			id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			created_at    timestamptz NOT NULL DEFAULT now(),
			topic         text  NOT NULL,
			partition_key text  NOT NULL,
			payload       bytea NOT NULL
		)`,
		take: `DELETE FROM ` + e.Table("outbox_by_delete") + ` WHERE id = ANY (ARRAY(
				SELECT id FROM ` + e.Table("outbox_by_delete") + ` ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
			)) RETURNING id, topic, partition_key, payload`,
	}
	return harness.Runner{Name: "skip_delete", Run: s.run}
}
