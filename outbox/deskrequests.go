package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// RequestID is the number of a request in the record.
type RequestID int64

// Request is one row of the record: who asked for what, when, and what came of it.
type Request struct {
	ID     RequestID
	Action string // replay, discard, pause, resume, rate, types, rewind, skip, drop, rebase
	// What of it: the parked event of a replay or discard, the id to which a rewind or
	// skip goes; 0 for the others.
	LogID int64
	Rate  float64  // of a rate, in events a second; 0: as fast as it can
	Types []string // of types; nil: all
	By    string   // DeskConfig.By, or the database role
	At    time.Time
	// DoneAt is zero as long as it has not been carried out.
	DoneAt time.Time
	// Outcome says what was done, or why nothing was, in words for a person.
	Outcome string
}

// Refused tells whether the holder of the lease could not do what was asked: things
// had changed since, and Outcome says how.
func (r Request) Refused() bool { return strings.HasPrefix(r.Outcome, "refused: ") }

// Requests gives up to limit requests to this relay or handler above the id after,
// in order, done or not. Start with 0, go on with the last one's id. A name that
// never ran or was dropped is no error: its record stays.
func (d *Desk) Requests(ctx context.Context, after RequestID, limit int) ([]Request, error) {
	const what = "list the requests to %q"
	if limit < 1 {
		return nil, d.did(what, fmt.Errorf("%w: limit is %d, use at least 1", ErrInvalidRequest, limit))
	}
	found, err := d.requests(ctx, `id > $2 ORDER BY id LIMIT $3`, int64(after), limit)
	if err != nil {
		return nil, d.did(what, err)
	}
	return found, nil
}

func (d *Desk) requests(ctx context.Context, where string, args ...any) ([]Request, error) {
	ctx, cancel := context.WithTimeout(ctx, d.db.timeout)
	defer cancel()
	rows, err := d.db.pool.Query(ctx, `SELECT id, action, coalesce(log_id, 0), coalesce(rate, 0), types, requested_by, requested_at, done_at, coalesce(outcome, '')
		FROM `+d.db.table("relay_request")+` WHERE relay = $1 AND `+where, append([]any{d.name}, args...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Request, err error) {
		var done *time.Time
		err = row.Scan(&r.ID, &r.Action, &r.LogID, &r.Rate, &r.Types, &r.By, &r.At, &done, &r.Outcome)
		if done != nil {
			r.DoneAt = *done
		}
		return r, err
	})
}

// Wait returns when a request has been carried out, with its outcome; it looks
// every half second at most. If ctx ends first the request stands, and the error,
// which wraps that of ctx, says who should have carried it out. One that is not in
// the record wraps ErrUnknownRequest.
func (d *Desk) Wait(ctx context.Context, id RequestID) (Request, error) {
	what := fmt.Sprintf("wait for request %d to %%q", id)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		found, err := d.requests(ctx, `id = $2`, int64(id))
		switch {
		case ctx.Err() != nil:
			return Request{}, d.did(what, fmt.Errorf("%w: %s", ctx.Err(), d.whoHolds(ctx)))
		case err != nil:
			return Request{}, d.did(what, err)
		case len(found) == 0:
			return Request{}, d.did(what, fmt.Errorf("%w: it was asked of another name, or deleted when it was done: Requests lists what there is", ErrUnknownRequest))
		case !found[0].DoneAt.IsZero():
			return found[0], nil
		}
		sleep(ctx, pause)
	}
}

// holding is who has the lease of a name: nobody if holder is empty.
type holding struct {
	holder  string
	expires time.Time
}

func (h holding) String() string {
	return fmt.Sprintf("%s until %s", h.holder, h.expires.UTC().Format(time.RFC3339))
}

func (d *Desk) holding(ctx context.Context) (h holding, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.db.timeout)
	defer cancel()
	err = d.db.pool.QueryRow(ctx, `SELECT holder::text, expires FROM `+d.db.table("relay_lease")+`
		WHERE relay = $1 AND expires > clock_timestamp() ORDER BY expires DESC LIMIT 1`, d.name).Scan(&h.holder, &h.expires)
	if errors.Is(err, pgx.ErrNoRows) {
		return holding{}, nil
	}
	return h, err
}

// whoHolds says, when waiting has ended, why it may have taken so long.
func (d *Desk) whoHolds(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	h, err := d.holding(ctx)
	switch {
	case err != nil:
		return "it is asked for and not known to be carried out, and the database does not say by whom it would be"
	case h.holder == "":
		return "nobody holds the lease of that name: is it running? The request waits for it"
	}
	return fmt.Sprintf("the request waits for the holder of its lease, %s, which has not come to it yet", h)
}
