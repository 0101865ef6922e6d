package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/migrations"
)

// check refuses, at the start of Run, what would lose events or never work.
func (d *database) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var standby bool
	if err := d.pool.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby); err != nil {
		return fmt.Errorf("reach the database (is the pool's DSN right, and the server up?): %w", err)
	}
	if standby {
		return fmt.Errorf("%w: connect the relay to the primary", ErrReadReplica)
	}
	if err := migrations.Check(ctx, d.pool, d.schema); err != nil {
		return err
	}
	// Without the privilege pg_sequence_last_value is an error or NULL, by version,
	// and NULL reads as an empty log.
	var may bool
	var cache int64
	err := d.pool.QueryRow(ctx, `SELECT has_sequence_privilege(s.seqrelid, 'USAGE, SELECT'), s.seqcache
		FROM pg_sequence AS s WHERE s.seqrelid = `+quoteLiteral(d.table("outbox_id"))+`::regclass`).Scan(&may, &cache)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("schema %q has no sequence outbox_id: %w: call migrations.Up(ctx, pool, %q)", d.schema, migrations.ErrNotMigrated, d.schema)
	case err != nil:
		return explain(d.schema, err)
	case !may:
		return fmt.Errorf("%w: GRANT SELECT ON SEQUENCE %s to the relay's role", ErrMissingPrivilege, d.table("outbox_id"))
	case cache != 1:
		return fmt.Errorf("the sequence %s hands out ids in blocks of %d, so that ids say nothing about order: %w: run ALTER SEQUENCE %s CACHE 1",
			d.table("outbox_id"), cache, ErrInvalidConfig, d.table("outbox_id"))
	}
	return nil
}

// source names the log and its incarnation. Ids may be issued again after an
// asynchronous fail-over, which a new timeline tells: then the incarnation grows.
func (d *database) source(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	table := d.table("outbox_source")
	const timeline = `substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`
	// Several relays may notice at once: the condition lets one of them count.
	if _, err := d.pool.Exec(ctx, `UPDATE `+table+` SET incarnation = incarnation + 1, timeline = `+timeline+`
		WHERE timeline <> `+timeline+` AND system_identifier = (SELECT system_identifier FROM pg_control_system())`); err != nil {
		return "", explain(d.schema, err)
	}
	var id string
	var incarnation, stored, here int64
	err := d.pool.QueryRow(ctx, `SELECT source::text, incarnation, system_identifier, (SELECT system_identifier FROM pg_control_system()) FROM `+table).
		Scan(&id, &incarnation, &stored, &here)
	if err != nil {
		return "", explain(d.schema, err)
	}
	if stored != here {
		return "", fmt.Errorf("schema %q was written in cluster %d, this is cluster %d: %w: its transaction ids mean nothing here; restore into the cluster it came from, or start with an empty schema", d.schema, stored, here, ErrOtherCluster)
	}
	return fmt.Sprintf("%s/%d", id, incarnation), nil
}
