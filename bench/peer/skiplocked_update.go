package peer

import "github.com/postbus/postbus/bench/harness"

// SkipLockedUpdate marks what is sent, and keeps the rows. One worker keeps the order,
// as ours does.
func SkipLockedUpdate(e *harness.Env) harness.Runner {
	return skipLockedUpdate(e, "skip_update", 1)
}

// SkipLockedUpdate2 has two workers, and no order.
func SkipLockedUpdate2(e *harness.Env) harness.Runner {
	return skipLockedUpdate(e, "skip_update_2", 2)
}

func skipLockedUpdate(e *harness.Env, name string, workers int) harness.Runner {
	s := skipLocked{
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
		take: `UPDATE ` + e.Table("outbox_by_update") + ` SET sent_at = now() WHERE id = ANY (ARRAY(
				SELECT id FROM ` + e.Table("outbox_by_update") + ` WHERE sent_at IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
			)) RETURNING topic, partition_key, payload`,
	}
	return harness.Runner{Name: name, Run: s.run}
}
