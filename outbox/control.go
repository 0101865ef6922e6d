package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// control is how an owner is steered: its row in table relay. Only the holder of
// the lease changes it, in the transaction of a link, so that what was read after
// a take-over holds until the holder itself changes it.
type control struct {
	kind      string
	paused    bool
	rate      float64  // events a second at most; 0: as fast as it can
	types     []string // patterns of event types that are let through; nil: all
	skipBelow int64    // events with lower ids are left out
	lostAt    *time.Time
}

// readControl gives the row of who; found is false before its first Run, and after Drop.
func (d *database) readControl(ctx context.Context, who owner) (c control, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var rate *float64
	err = d.pool.QueryRow(ctx, `SELECT kind, paused, rate, types, skip_below, lost_at FROM `+d.table("relay")+` WHERE relay = $1`, who.name).
		Scan(&c.kind, &c.paused, &rate, &c.types, &c.skipBelow, &c.lostAt)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return control{}, false, nil
	case err != nil:
		return control{}, false, fmt.Errorf("read how %s is steered: %w", who, explain(d.schema, err))
	}
	if rate != nil {
		c.rate = *rate
	}
	switch {
	case c.kind != who.kind:
		return c, true, fmt.Errorf("%w: the name %q is that of a %s since its first Run: give this %s another name, or drop the other with Desk.Drop", ErrNameTaken, who.name, owner{kind: c.kind, name: who.name}, who.kind)
	case c.lostAt != nil:
		return c, true, fmt.Errorf("%w: retention has removed events that %s had not read, since nobody had moved its position by %s: drop it with Desk.Drop and run it again, so that it begins anew where its config says", ErrPositionLost, who, c.lostAt.UTC().Format(time.RFC3339))
	}
	return c, true, nil
}

// register writes the row of who, unless it is there.
func (d *database) register(who owner) statement {
	return statement{sql: `INSERT INTO ` + d.table("relay") + ` (relay, kind) VALUES ($1, $2) ON CONFLICT (relay) DO NOTHING`,
		args: []any{who.name, who.kind}, rows: anyRows}
}
