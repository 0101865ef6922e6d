package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/pooler"
	"github.com/postbus/postbus/migrations"
)

// ErrSequenceBehind is returned at the start of Run when rows or positions have ids
// above the sequence that ids come from: the data was copied here without it.
var ErrSequenceBehind = errors.New("the sequence of ids lies behind the log")

// check refuses, at the start of Run, what would lose events or never work.
func (d *database) check(ctx context.Context) error {
	if err := d.checkServer(ctx); err != nil {
		return err
	}
	if err := d.missingGrants(ctx, "a relay or durable handler", grantsOfRelay); err != nil {
		return err
	}
	if err := migrations.Check(ctx, d.pool, d.schema); err != nil {
		return err
	}
	if err := d.checkCache(ctx); err != nil {
		return err
	}
	if err := d.checkOrigin(ctx); err != nil {
		return err
	}
	return d.checkSequence(ctx)
}

// checkServer finds out whether there is a server, one that can be written to, and
// nothing before it that this pool cannot work through.
func (d *database) checkServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var err error
	if d.pooled, err = pooler.Check(ctx, d.pool); errors.Is(err, ErrExecMode) {
		return err
	}
	var standby bool
	if err == nil {
		err = d.pool.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby)
	}
	if err != nil {
		return fmt.Errorf("reach the database (is the pool's DSN right, and the server up?): %w", err)
	}
	if standby {
		return fmt.Errorf("%w: positions are written, and cannot be there: connect to the primary", ErrReadReplica)
	}
	return nil
}

func (d *database) checkCache(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var cache int64
	err := d.pool.QueryRow(ctx, `SELECT seqcache FROM pg_sequence WHERE seqrelid = to_regclass(`+quoteLiteral(d.table("outbox_id"))+`)`).Scan(&cache)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("schema %q has no sequence outbox_id: %w: call migrations.Up(ctx, pool, %q)", d.schema, migrations.ErrNotMigrated, d.schema)
	case err != nil:
		return explain(d.schema, err)
	case cache != 1:
		return fmt.Errorf("the sequence %s hands out ids in blocks of %d, so that ids say nothing about order: %w: run ALTER SEQUENCE %s CACHE 1",
			d.table("outbox_id"), cache, ErrInvalidConfig, d.table("outbox_id"))
	}
	return nil
}

// origin is what the log and the positions say about the cluster they were written
// in, and what the cluster says about itself.
type origin struct {
	here  int64  // this cluster's system identifier
	log   *int64 // outbox_source's; nil: its row is missing
	links *int64 // one that a position's round was started in, if it is not here
	next  int64  // one past the last transaction id that has finished here
	seen  int64  // the same, as the positions' snapshots knew it
	rows  int64  // a transaction id in the log that is not below next; 0: none
}

// origin reads it in one statement: whatever it sees of the tables was committed
// before its snapshot, which is what the tables are compared with.
func (d *database) origin(ctx context.Context, q interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}) (o origin, err error) {
	link := d.table("relay_link")
	// ORDER BY .. LIMIT 1 has one sensible plan; EXISTS would read the whole log.
	err = q.QueryRow(ctx, `SELECT c.system_identifier, (SELECT system_identifier FROM `+d.table("outbox_source")+`),
			(SELECT system_identifier FROM `+latestRounds(link)+` WHERE system_identifier <> c.system_identifier LIMIT 1),
			pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
			coalesce((SELECT max(pg_snapshot_xmax(snapshot)) FROM `+latestRounds(link)+`)::text::bigint, 0),
			coalesce((SELECT xid FROM `+d.table("outbox")+` WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) ORDER BY xid DESC LIMIT 1)::text::bigint, 0)
		FROM pg_control_system() AS c`).Scan(&o.here, &o.log, &o.links, &o.next, &o.seen, &o.rows)
	return o, explain(d.schema, err)
}

// latestRounds is a subselect of the links that began the round of each position. It
// does not go through the others.
func latestRounds(link string) string {
	return `(WITH RECURSIVE ` + latestLinks(link) + `
		SELECT b.* FROM latest AS a CROSS JOIN LATERAL (SELECT * FROM ` + link + ` AS b
			WHERE b.relay = a.relay AND b.slot_from = a.slot_from AND b.slot_to = a.slot_to AND b.n = a.round LIMIT 1) AS b) AS latest`
}

// foreign says what does not belong to this cluster, or "".
func (o *origin) foreign() string {
	switch {
	case o.log == nil:
		return "the row of outbox_source, which says where the log was written, was not copied here"
	case *o.log != o.here:
		return fmt.Sprintf("the log was written in cluster %d, this is cluster %d", *o.log, o.here)
	case o.links != nil:
		return fmt.Sprintf("a position was written in cluster %d, this is cluster %d", *o.links, o.here)
	case o.seen > o.next:
		return fmt.Sprintf("a position has seen transactions up to %d, this cluster has come to %d", o.seen-1, o.next-1)
	case o.rows != 0:
		return fmt.Sprintf("an event was written by transaction %d, this cluster has come to %d", o.rows, o.next-1)
	}
	return ""
}

const thenRebase = "stop all relays and durable handlers, then run outbox.Rebase once"

// checkOrigin: transaction ids mean nothing in another cluster.
func (d *database) checkOrigin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	o, err := d.origin(ctx, d.pool)
	if err != nil {
		return err
	}
	if what := o.foreign(); what != "" {
		return otherCluster(d.schema, what)
	}
	return nil
}

func otherCluster(schema, what string) error {
	return fmt.Errorf("schema %q: %w: %s, so that its transaction ids tell nothing about what was published: %s", schema, ErrOtherCluster, what, thenRebase)
}

// checkSequence: ids that are given out again, below what a position has seen, would
// never be published.
func (d *database) checkSequence(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	lastID := `SELECT coalesce(pg_sequence_last_value(` + quoteLiteral(d.table("outbox_id")) + `::regclass), 0)`
	var before, highest, after int64
	if err := d.pool.QueryRow(ctx, lastID).Scan(&before); err != nil {
		return explain(d.schema, err)
	}
	// Only ids above the sequence are looked for, so that the search passes no rows
	// that retention has just deleted. What was appended meanwhile is told apart by
	// the sequence's later position, which is not below an id that was seen before.
	err := d.pool.QueryRow(ctx, `SELECT greatest((SELECT id FROM `+d.table("outbox")+` WHERE id > $1 ORDER BY id DESC LIMIT 1),
			(SELECT max(greatest(upper_id, seen_id)) FROM `+latestRounds(d.table("relay_link"))+`), 0)`, before).Scan(&highest)
	if err != nil {
		return explain(d.schema, err)
	}
	if highest <= before {
		return nil
	}
	if err := d.pool.QueryRow(ctx, lastID).Scan(&after); err != nil {
		return explain(d.schema, err)
	}
	if highest > after {
		return fmt.Errorf("schema %q: %w: ids have been given out up to %d, the sequence %s stands at %d (the data was copied here, the sequence was not), so that new events would get ids that the relays have passed: %s",
			d.schema, ErrSequenceBehind, highest, d.table("outbox_id"), after, thenRebase)
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
	var incarnation int64
	o := origin{log: new(int64)}
	err := d.pool.QueryRow(ctx, `SELECT source::text, incarnation, system_identifier, (SELECT system_identifier FROM pg_control_system()) FROM `+table).
		Scan(&id, &incarnation, o.log, &o.here)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		o.log = nil
	case err != nil:
		return "", explain(d.schema, err)
	}
	if what := o.foreign(); what != "" {
		return "", otherCluster(d.schema, what)
	}
	return fmt.Sprintf("%s/%d", id, incarnation), nil
}
