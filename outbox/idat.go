package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// jitter is by how much ids and append times may disagree: a session that was
// held up between drawing the one and reading the clock.
const jitter = time.Second

// idAt gives the id from which on the log has all that was appended at t or later,
// and nothing appended more than jitter before: a binary search over the primary
// key, since ids and append times grow together. The log has no index on the time.
// If there is nothing so late, it is the next id to be drawn.
func (d *database) idAt(ctx context.Context, t time.Time) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	lo, err := d.floor(ctx) // all up to it is gone: the search walks no dead entries
	if err != nil {
		return 0, err
	}
	var hi int64
	if err := d.pool.QueryRow(ctx, `SELECT coalesce(pg_sequence_last_value(`+quoteLiteral(d.table("outbox_id"))+`::regclass), 0)`).Scan(&hi); err != nil {
		return 0, fmt.Errorf("look for the first event after %s: %w", t.Format(time.RFC3339), explain(d.schema, err))
	}
	before := t.Add(-jitter)
	for lo < hi {
		mid := lo + (hi-lo)/2
		var id int64
		var at time.Time
		err := d.pool.QueryRow(ctx, `SELECT id, at FROM `+d.table("outbox")+` WHERE id > $1 ORDER BY id LIMIT 1`, mid).Scan(&id, &at)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			hi = mid
		case err != nil:
			return 0, fmt.Errorf("look for the first event after %s: %w", t.Format(time.RFC3339), explain(d.schema, err))
		case at.Before(before):
			lo = id
		default:
			hi = mid
		}
	}
	return lo + 1, nil
}
