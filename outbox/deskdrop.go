package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// DropConfig is what Drop may be told. The zero value drops nothing but a name.
type DropConfig struct {
	// LoseParked drops the events that are parked under the name, too: they are never
	// sent. Without it a drop is refused as long as there is one that is not discarded.
	LoseParked bool
}

// DropPlan is what a drop would mean at the moment.
type DropPlan struct {
	// Parked are the events that would be lost: parked and not discarded. They are
	// payloads of Bytes in all.
	Parked int
	Bytes  int64
	// Requests are those not carried out yet: they never would be.
	Requests int
	// Position is the highest id that was sent or left out. What the log has above it
	// would never be sent under this name.
	Position int64
	// Holder runs it, by the lease, until HeldUntil if it does not renew it: a drop is
	// refused. Empty if nobody does.
	Holder    string
	HeldUntil time.Time
}

// dropLease is for how long a drop holds the lease: longer than all its calls.
const dropLease = 4 * deskTimeout

// PlanDrop tells what Drop would mean, and changes nothing. It refuses a name that
// nobody knows with ErrUnknownRelay.
func (d *Desk) PlanDrop(ctx context.Context) (p DropPlan, err error) {
	const what = "plan to drop %q"
	if _, err := d.kind(ctx); err != nil {
		return p, d.did(what, err)
	}
	if p.Parked, p.Bytes, err = d.losable(ctx); err != nil {
		return p, d.did(what, err)
	}
	h, err := d.holding(ctx)
	if err != nil {
		return p, d.did(what, err)
	}
	p.Holder, p.HeldUntil = h.holder, h.expires
	err = d.row(ctx, `SELECT count(*) FROM `+d.db.table("relay_request")+` WHERE relay = $1 AND done_at IS NULL`, d.name).Scan(&p.Requests)
	if err != nil {
		return p, d.did(what, err)
	}
	at, err := d.position(ctx)
	if err != nil {
		return p, d.did(what, err)
	}
	p.Position = at.passed
	return p, nil
}

// Drop ends a relay or durable handler for good: its position, its settings and its
// parked events are removed, retention waits for it no more, and requests that are
// open get the outcome "dropped". The record of requests stays, and shows the drop.
// Who runs under the name later begins anew, where its config says. It is the one
// thing that the desk does itself instead of asking, so nobody may be running: stop
// every process first. A Run that has held it, and was frozen meanwhile, ends with
// ErrDropped. PlanDrop tells beforehand what it would mean.
//
// It is refused with ErrUnknownRelay, with ErrRunning while somebody holds the lease,
// and with ErrHasParked for what is parked, unless DropConfig.LoseParked says that it
// may be lost. A name whose position is lost can be dropped. After an error of the
// connection it may be done: ErrUnknownRelay at the next call tells.
func (d *Desk) Drop(ctx context.Context, cfg DropConfig) error {
	const what = "drop %q"
	kind, err := d.kind(ctx)
	if err != nil {
		return d.did(what, err)
	}
	who := owner{kind: kind, name: d.name}
	holder := uuid.New()
	l := newLease(d.db, who, allSlots, holder, dropLease)
	taken, err := l.take(ctx)
	if err != nil {
		return d.did(what, err)
	}
	if !taken {
		h, err := d.holding(ctx)
		if err != nil {
			return d.did(what, err)
		}
		return d.did(what, fmt.Errorf("%w: its lease is held by %s: stop every Run of that name, or wait until then if its process is dead", ErrRunning, h))
	}
	if err := d.remove(ctx, newChain(d.db, who, allSlots, holder), cfg); err != nil {
		if giveUpErr := l.giveUp(ctx); giveUpErr != nil {
			err = fmt.Errorf("%w; the lease that was taken for it runs out in %s, nobody runs until then: %w", err, dropLease, giveUpErr)
		}
		return d.did(what, err)
	}
	wake(d.db.schema) // who stands by finds out
	return nil
}

// remove tries until no link of somebody else comes in between.
func (d *Desk) remove(ctx context.Context, c *chain, cfg DropConfig) error {
	const tries = 5
	for i := 1; ; i++ {
		found, err := c.load(ctx)
		if err != nil {
			return err
		}
		// Counted after the load: parking takes a link, which would be in the way of ours.
		lose, bytes, err := d.losable(ctx)
		if err != nil {
			return err
		}
		if lose > 0 && !cfg.LoseParked {
			return fmt.Errorf("%w: %d, with %d bytes: replay them while it runs, or discard them, or set DropConfig.LoseParked", ErrHasParked, lose, bytes)
		}
		link := c.firstLink(0)
		if found {
			link = c.link(c.pos.lastID)
		}
		err = c.write(ctx, true, append([]statement{link}, d.removing(lose)...)...)
		if err == nil || !errors.Is(err, errFenced) || i == tries {
			return err
		}
	}
}

// removing gives the statements behind a link of our own, which nobody can have
// overtaken: a former holder that was frozen finds its link gone.
func (d *Desk) removing(lost int) []statement {
	outcome := "dropped"
	if lost > 0 {
		outcome = fmt.Sprintf("dropped, with %d parked events", lost)
	}
	requests := d.db.table("relay_request")
	steps := []statement{
		// Whoever is asking under the name comes before us, and gets the outcome, or
		// after us, and finds the name gone. Only behind the link: the other way round
		// we would wait for somebody who waits for us.
		{sql: `SELECT set_config('lock_timeout', '5s', true)`, rows: 1},
		{sql: `LOCK TABLE ` + requests + ` IN SHARE ROW EXCLUSIVE MODE`, rows: anyRows},
	}
	for _, name := range []string{"relay_link", "parked", "relay_lease", "relay"} {
		steps = append(steps, statement{sql: `DELETE FROM ` + d.db.table(name) + ` WHERE relay = $1`, args: []any{d.name}, rows: anyRows})
	}
	return append(steps,
		statement{sql: `UPDATE ` + requests + ` SET done_at = clock_timestamp(), outcome = 'dropped' WHERE relay = $1 AND done_at IS NULL`,
			args: []any{d.name}, rows: anyRows},
		statement{sql: `INSERT INTO ` + requests + ` (relay, action, requested_by, done_at, outcome)
				VALUES ($1, 'drop', coalesce(nullif($2::text, ''), session_user), clock_timestamp(), $3)`,
			args: []any{d.name, d.by, outcome}, rows: 1})
}

// kind is that of the name, or an error that wraps ErrUnknownRelay.
func (d *Desk) kind(ctx context.Context) (kind string, err error) {
	err = d.row(ctx, `SELECT kind FROM `+d.db.table("relay")+` WHERE relay = $1`, d.name).Scan(&kind)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", d.unknown(ctx)
	}
	return kind, err
}

// losable counts the parked events that are not discarded.
func (d *Desk) losable(ctx context.Context) (n int, bytes int64, err error) {
	err = d.row(ctx, `SELECT count(*), coalesce(sum(octet_length(payload)), 0)::bigint FROM `+d.db.table("parked")+`
		WHERE relay = $1 AND state <> 'discarded'`, d.name).Scan(&n, &bytes)
	return n, bytes, err
}
