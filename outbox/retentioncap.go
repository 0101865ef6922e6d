package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// endTheLost ends the positions that hold more of the log than they may.
func (r *Retention) endTheLost(ctx context.Context) error {
	if r.cfg.MaxHold == 0 && r.cfg.MaxHoldRows == 0 {
		return nil
	}
	all, err := r.db.heldBack(ctx)
	if err != nil {
		return err
	}
	for _, h := range all {
		tooLong := r.cfg.MaxHold > 0 && h.Age > r.cfg.MaxHold
		tooMany := r.cfg.MaxHoldRows > 0 && h.NextID > 0 && h.IDs > r.cfg.MaxHoldRows
		if !h.LostAt.IsZero() || !tooLong && !tooMany {
			continue
		}
		ended, err := r.db.endPosition(ctx, h)
		if err != nil {
			return err
		}
		if ended {
			r.cfg.Logger.Error("a position was ended, since it held the log back for longer than it may: events that it has not passed leave the log",
				"name", h.Name, "kind", h.Kind, "log_id", h.NextID, "since", h.Since, "ids", h.IDs)
		}
	}
	return nil
}

// endPosition ends the position of a name if it is still where h says: retention then
// takes no account of it, and Run is refused with ErrPositionLost. Whoever runs at the
// moment is thrown off its chain by a link of somebody else, loads its position anew,
// and finds out.
func (d *database) endPosition(ctx context.Context, h HeldBack) (ended bool, err error) {
	sql := d.withSeen() + `, linked AS (
	INSERT INTO ` + d.table("relay_link") + ` (relay, slot_from, slot_to, n, holder, round, last_id)
	SELECT relay, slot_from, slot_to, n + 1, $3::uuid, round, last_id FROM position
	WHERE relay = $1 AND lost_at IS NULL AND (SELECT min(passed) FROM position WHERE relay = $1) = $2
	RETURNING 1
), lost AS (
	INSERT INTO ` + d.table("relay") + ` AS r (relay, kind, lost_at) SELECT $1, $4, clock_timestamp() WHERE EXISTS (SELECT FROM linked)
	ON CONFLICT (relay) DO UPDATE SET lost_at = excluded.lost_at RETURNING 1
) SELECT EXISTS (SELECT FROM lost)`
	// Its holder may write the very link meanwhile, many times a second.
	for range 5 {
		err = d.write(ctx, true, d.lockPositions(), statement{sql: sql, args: []any{h.Name, h.Passed, uuid.New().String(), h.Kind},
			scan: func(row pgx.Row) error { return row.Scan(&ended) }})
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != codeUniqueViolation {
			break
		}
	}
	if err != nil {
		return false, fmt.Errorf("end the position of %q, which holds the log back: %w", h.Name, explain(d.schema, err))
	}
	return ended, nil
}
