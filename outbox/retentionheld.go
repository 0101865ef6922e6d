package outbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// HeldBack is what one relay or durable handler still needs of the log.
type HeldBack struct {
	Name string
	Kind string // "relay" or "handler"
	// Passed is the log id up to which it needs nothing any more, but for events of
	// transactions that were open when it passed them.
	Passed int64
	// NextID is the lowest log id above Passed, and above what retention has taken,
	// that it still needs; 0: there is none now.
	NextID int64
	// Since is when that event was appended, and Age how long ago that is; zero if
	// there is none.
	Since time.Time
	Age   time.Duration
	// IDs is how many ids the log has given out above Passed. Rolled-back ones count.
	IDs int64
	// LostAt is when RetentionConfig.MaxHold or MaxHoldRows has ended its position;
	// zero: it has not. Ended positions hold nothing.
	LostAt time.Time
}

// heldBack tells of every position what it still needs, by name. It takes no lock.
func (d *database) heldBack(ctx context.Context) ([]HeldBack, error) {
	var all []HeldBack
	err := d.read(ctx, d.heldBackSQL(), nil, func(rows pgx.Rows) (bool, error) {
		var h HeldBack
		var since, lost *time.Time
		var age int64
		if err := rows.Scan(&h.Name, &h.Kind, &h.Passed, &h.NextID, &since, &age, &h.IDs, &lost); err != nil {
			return false, err
		}
		if since != nil {
			h.Since, h.Age = *since, time.Duration(age)*time.Microsecond
		}
		if lost != nil {
			h.LostAt = *lost
		}
		all = append(all, h)
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("find out who holds the log back: %w", explain(d.schema, err))
	}
	// Of several slot ranges of one name, the one that is behind counts.
	slices.SortFunc(all, func(a, b HeldBack) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Passed, b.Passed)) })
	return slices.CompactFunc(all, func(a, b HeldBack) bool { return a.Name == b.Name }), nil
}

func (d *database) heldBackSQL() string {
	// Rows above passed that are visible in the snapshot lie below the round's upper
	// end: the search for the first one that is not ends there, and walks no rows that
	// retention has removed.
	return d.withSeen() + `
		SELECT p.relay, coalesce(p.kind, 'relay'), p.passed, coalesce(o.id, 0), o.at,
			coalesce((extract(epoch FROM clock_timestamp() - o.at) * 1000000)::bigint, 0),
			greatest(0, coalesce(pg_sequence_last_value(` + quoteLiteral(d.table("outbox_id")) + `::regclass), 0) - p.passed), p.lost_at
		FROM position AS p LEFT JOIN LATERAL (SELECT o.id, o.at FROM ` + d.table("outbox") + ` AS o
			WHERE o.id > greatest(p.passed, (SELECT floor FROM ` + d.table("retention") + `)) AND NOT pg_visible_in_snapshot(o.xid, p.snapshot)
			ORDER BY o.id LIMIT 1) AS o ON true`
}
