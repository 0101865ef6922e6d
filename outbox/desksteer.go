package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/typepattern"
)

// What may be asked beside replay and discard, as it stands in relay_request.action.
const (
	actionPause  = "pause"
	actionResume = "resume"
	actionRate   = "rate"   // rate: events a second; NULL: as fast as it can
	actionTypes  = "types"  // types: what to let through; NULL: all
	actionRewind = "rewind" // log_id: the first event to come again
	actionSkip   = "skip"   // log_id: the first event not to be left out
)

// The bounds of a rate, in events a second.
const (
	minRate = 0.001
	maxRate = 1e9
)

const maxTypes = 1000

// asked is one request before it is a row.
type asked struct {
	action string
	logID  *int64
	rate   *float64
	types  []string
}

// Pause asks for publishing, or handling, to stop: the lease and the position are
// kept, no event is sent, none is lost, and the log keeps growing. It outlives
// restarts; Resume ends it.
func (d *Desk) Pause(ctx context.Context) (RequestID, error) {
	return d.steer(ctx, "pause %q", asked{action: actionPause})
}

// Resume asks for it to go on from where Pause has stopped it.
func (d *Desk) Resume(ctx context.Context) (RequestID, error) {
	return d.steer(ctx, "resume %q", asked{action: actionResume})
}

// SetRate asks for at most eventsPerSecond, from 0.001 to 1e9, until another rate or
// Unlimited is asked for; it outlives restarts.
func (d *Desk) SetRate(ctx context.Context, eventsPerSecond float64) (RequestID, error) {
	const what = "set the rate of %q"
	switch {
	case !(eventsPerSecond > 0): // NaN, too
		return 0, d.did(what, fmt.Errorf("%w: %v events a second is no rate: use Pause to stop it", ErrInvalidRequest, eventsPerSecond))
	case eventsPerSecond < minRate:
		return 0, d.did(what, fmt.Errorf("%w: %v events a second is less than %v: use Pause to stop it", ErrInvalidRequest, eventsPerSecond, minRate))
	case eventsPerSecond > maxRate:
		return 0, d.did(what, fmt.Errorf("%w: %v events a second is more than %v: use Unlimited for as fast as it can", ErrInvalidRequest, eventsPerSecond, maxRate))
	}
	return d.steer(ctx, what, asked{action: actionRate, rate: &eventsPerSecond})
}

// Unlimited asks for no rate: as fast as it can.
func (d *Desk) Unlimited(ctx context.Context) (RequestID, error) {
	return d.steer(ctx, "lift the rate of %q", asked{action: actionRate})
}

// SetTypes asks for only those events to be let through whose type matches one of the
// patterns (as in [ParkedFilter]), at most 1,000 of them, and is among the types of the
// program's own config. The others are passed over and do not come later by
// themselves: RewindTo brings them back.
func (d *Desk) SetTypes(ctx context.Context, patterns ...string) (RequestID, error) {
	const what = "set the types of %q"
	var faults []error
	switch {
	case len(patterns) == 0:
		faults = append(faults, errors.New("no pattern was given: use AllTypes to let everything through, Pause to let nothing through"))
	case len(patterns) > maxTypes:
		faults = append(faults, fmt.Errorf("%d patterns are more than %d: use patterns such as \"order.*\"", len(patterns), maxTypes))
		patterns = nil
	}
	for _, p := range patterns {
		if err := typepattern.Valid(p); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return 0, d.did(what, fmt.Errorf("%w: %w", ErrInvalidRequest, errors.Join(faults...)))
	}
	patterns = slices.Clone(patterns)
	slices.Sort(patterns)
	return d.steer(ctx, what, asked{action: actionTypes, types: slices.Compact(patterns)})
}

// AllTypes asks for events of every type of the program's config to be let through from
// here on.
func (d *Desk) AllTypes(ctx context.Context) (RequestID, error) {
	return d.steer(ctx, "set the types of %q", asked{action: actionTypes})
}

// steer writes one request, or says why it would never be carried out. Every error
// of asking is one of ErrInvalidRequest, ErrUnknownRelay, ErrPositionLost, of the
// database or of ctx; nothing was asked for then, except that after an error of the
// connection the request may be there: Requests tells.
func (d *Desk) steer(ctx context.Context, what string, a asked) (id RequestID, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.db.timeout)
	defer cancel()
	// The look at the name and the row are one statement: Drop waits for it, or it
	// finds the name gone.
	err = d.db.pool.QueryRow(ctx, `INSERT INTO `+d.db.table("relay_request")+` (relay, action, log_id, rate, types, requested_by)
		SELECT r.relay, $2, $3::bigint, $4::double precision, $5::text[], coalesce(nullif($6::text, ''), session_user)
		FROM `+d.db.table("relay")+` AS r
		WHERE r.relay = $1 AND r.lost_at IS NULL
		RETURNING id`, d.name, a.action, a.logID, a.rate, a.types, d.by).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		if err = d.refusal(ctx); err == nil {
			err = fmt.Errorf("%w: its name was written or taken up in this moment: ask again", ErrInvalidRequest)
		}
	}
	if err != nil {
		return 0, d.did(what, err)
	}
	wake(d.db.schema)
	return id, nil
}

// refusal is why nobody would carry anything out, or nil.
func (d *Desk) refusal(ctx context.Context) error {
	var lostAt *time.Time
	err := d.db.pool.QueryRow(ctx, `SELECT lost_at FROM `+d.db.table("relay")+` WHERE relay = $1`, d.name).Scan(&lostAt)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return d.unknown(ctx)
	case err != nil:
		return err
	}
	return lost(lostAt)
}

// lost is the refusal of a name whose position retention has ended, or nil.
func lost(at *time.Time) error {
	if at == nil {
		return nil
	}
	return fmt.Errorf("%w: on %s, retention removed events that it had not read: Drop it and let it begin anew", ErrPositionLost, inUTC(*at))
}

// unknown names those who could be meant.
func (d *Desk) unknown(ctx context.Context) error {
	const most = 20
	rows, err := d.db.pool.Query(ctx, `SELECT relay FROM `+d.db.table("relay")+` ORDER BY relay LIMIT $1`, most+1)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: none has run on schema %q yet, is it the right one", ErrUnknownRelay, d.db.schema)
	}
	more := ""
	if len(names) > most {
		names, more = names[:most], " and others"
	}
	return fmt.Errorf("%w has run on schema %q, or it was dropped: use one of %s%s", ErrUnknownRelay, d.db.schema, strings.Join(names, ", "), more)
}
