package outbox

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// removeLate removes what lies at or below the floor: events of transactions that a
// position had not passed yet, or that were still open, when the floor went by. Most
// of those that are noted have none.
func (r *Retention) removeLate(ctx context.Context, l *lease, g *ground, report *RetentionReport) error {
	if len(g.late) == 0 {
		return nil
	}
	passed, err := r.passed(ctx, g)
	if err != nil || len(passed) == 0 {
		return err
	}
	var ids []int64
	// The bound on id is kept from the primary key, along which the planner would
	// otherwise walk the whole log for a few rows.
	err = r.db.read(ctx, `SELECT id FROM `+r.db.table("outbox")+` WHERE xid = ANY ($1::text[]::xid8[]) AND id + 0 <= $2`,
		[]any{passed, g.floor}, func(rows pgx.Rows) (bool, error) {
			var id int64
			err := rows.Scan(&id)
			ids = append(ids, id)
			return true, err
		})
	if err != nil {
		return fmt.Errorf("look for late events to remove: %w", explain(r.db.schema, err))
	}
	slices.Sort(ids)
	for len(ids) > 0 && ctx.Err() == nil {
		n := min(int(r.width), len(ids))
		began := time.Now()
		removed, err := r.removeThese(ctx, ids[:n], g.lastID)
		if r.adapt(err, time.Since(began)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove %d late events: %w", n, explain(r.db.schema, err))
		}
		report.Removed += removed
		ids = ids[n:]
		if ok, err := r.rest(ctx, l, time.Since(began)); !ok || err != nil {
			return err
		}
	}
	// One that still has events there, too young ones, stays noted.
	err = r.write(ctx, statement{rows: 1, args: []any{passed}, sql: `UPDATE ` + r.db.table("retention") + ` SET late = ARRAY(
			SELECT x FROM unnest(late) AS x WHERE x <> ALL ($1::text[]::xid8[])
				OR EXISTS (SELECT FROM ` + r.db.table("outbox") + ` AS o WHERE o.xid = x AND o.id + 0 <= floor))`})
	if err != nil {
		return fmt.Errorf("note that late events are removed: %w", explain(r.db.schema, err))
	}
	return nil
}

// passed lists the late transactions that every position has passed for good.
func (r *Retention) passed(ctx context.Context, g *ground) (passed []string, err error) {
	sql := r.db.withSeen() + readers("$2", "$3") + `SELECT x::text FROM unnest($1::text[]::xid8[]) AS x WHERE ` + hasSeen("x")
	err = r.db.read(ctx, sql, []any{texts(g.late), r.cfg.WithoutReaders, g.lastID}, func(rows pgx.Rows) (bool, error) {
		var x string
		err := rows.Scan(&x)
		passed = append(passed, x)
		return true, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for late transactions: %w", explain(r.db.schema, err))
	}
	return passed, nil
}

// removeThese asks the positions again, behind the lock.
func (r *Retention) removeThese(ctx context.Context, ids []int64, lastID int64) (removed int64, err error) {
	sql := r.db.withSeen() + readers("$3", "$4") + `, gone AS (
	DELETE FROM ` + r.db.table("outbox") + ` AS o WHERE o.id = ANY ($1::bigint[]) AND o.at < now() - $2::bigint * interval '1 microsecond' AND ` + hasSeen("o.xid") + `
	RETURNING 1
) SELECT count(*) FROM gone`
	err = r.write(ctx, statement{sql: sql, args: []any{ids, r.cfg.Keep.Microseconds(), r.cfg.WithoutReaders, lastID},
		scan: func(row pgx.Row) error { return row.Scan(&removed) }})
	return removed, err
}

// xids reads what texts has written.
func xids(texts []string) ([]uint64, error) {
	var all []uint64
	for _, t := range texts {
		x, err := strconv.ParseUint(t, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("a transaction id: %w", err)
		}
		all = append(all, x)
	}
	return all, nil
}
