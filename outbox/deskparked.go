package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ParkedState is where a parked event stands.
type ParkedState string

const (
	ParkedRetrying  ParkedState = stateRetrying  // failing; its attempts go on by themselves
	ParkedWaiting   ParkedState = stateWaiting   // behind an earlier event of its key
	ParkedGivenUp   ParkedState = stateGivenUp   // out of attempts or refused for good: needs a person
	ParkedDiscarded ParkedState = stateDiscarded // by a person; never sent again
)

// ParkedEvent is one event on the desk, without its payload.
type ParkedEvent struct {
	LogID     int64
	State     ParkedState
	Attempts  int    // failed ones
	Replays   int    // asked for by a person
	LastError string // at most 1 KiB; empty if it has not been tried
	EventID   uuid.UUID
	EventType string
	Topic     string
	Key       string // partition key
	Bytes     int    // of the payload
	ParkedAt  time.Time
	ChangedAt time.Time
}

// Get gives the parked event of a log id, or an error that wraps ErrNotParked.
func (d *Desk) Get(ctx context.Context, logID int64) (ParkedEvent, error) {
	found, err := d.parked(ctx, ` AND p.log_id = $2`, logID)
	if err != nil {
		return ParkedEvent{}, err
	}
	if len(found) == 0 {
		return ParkedEvent{}, fmt.Errorf("get event %d of %q: %w: Parked lists what is", logID, d.name, ErrNotParked)
	}
	return found[0], nil
}

// Parked gives up to limit of the parked events that filter means, above the log id
// after, in order. Start with 0, go on with the last one's id; a page that is not
// full is the last. What is wrong with filter or limit wraps ErrInvalidRequest.
func (d *Desk) Parked(ctx context.Context, filter ParkedFilter, after int64, limit int) ([]ParkedEvent, error) {
	if limit < 1 {
		return nil, fmt.Errorf("list the parked events of %q: %w: limit is %d, use at least 1", d.name, ErrInvalidRequest, limit)
	}
	if err := filter.check(); err != nil {
		return nil, fmt.Errorf("list the parked events of %q: %w", d.name, err)
	}
	where, args := filter.where()
	return d.parked(ctx, fmt.Sprintf(`%s AND p.log_id > $%d ORDER BY p.log_id LIMIT $%d`, where, len(args)+2, len(args)+3), append(args, after, limit)...)
}

func (d *Desk) parked(ctx context.Context, where string, args ...any) ([]ParkedEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, d.db.timeout)
	defer cancel()
	rows, err := d.db.pool.Query(ctx, `SELECT p.log_id, p.state, p.attempts, p.replays, coalesce(p.last_error, ''), p.event_id::text, p.event_type, p.topic,
		p.partition_key, octet_length(p.payload), p.parked_at, p.changed_at FROM `+d.db.table("parked")+` AS p WHERE p.relay = $1`+where, append([]any{d.name}, args...)...)
	if err != nil {
		return nil, d.did("read the parked events of %q", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e ParkedEvent, err error) {
		var id string
		if err = row.Scan(&e.LogID, &e.State, &e.Attempts, &e.Replays, &e.LastError, &id, &e.EventType, &e.Topic, &e.Key, &e.Bytes, &e.ParkedAt, &e.ChangedAt); err == nil {
			e.EventID, err = uuid.Parse(id)
		}
		return e, err
	})
	if err != nil {
		return nil, d.did("read the parked events of %q", err)
	}
	return found, nil
}

// Replay asks for given up events to be tried again, from their first attempt on.
// Under BlockKey the key goes on in order from there; under SkipKey it has gone on
// without them, and they carry the header events.HeaderReplayed. Nothing is asked
// for unless all of logIDs are parked and given up; otherwise the error wraps
// ErrNotParked and names them.
func (d *Desk) Replay(ctx context.Context, logIDs ...int64) error {
	return d.ask(ctx, actionReplay, []string{stateGivenUp}, logIDs)
}

// Discard asks for parked events not to be sent any more; their keys go on without
// them. One that is being sent at that moment may still arrive. Nothing is asked
// for unless all of logIDs are parked and not discarded yet; otherwise the error
// wraps ErrNotParked and names them.
func (d *Desk) Discard(ctx context.Context, logIDs ...int64) error {
	return d.ask(ctx, actionDiscard, []string{stateGivenUp, stateRetrying, stateWaiting}, logIDs)
}

func (d *Desk) ask(ctx context.Context, action string, states []string, logIDs []int64) error {
	if len(logIDs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.db.timeout)
	defer cancel()
	err := pgx.BeginFunc(ctx, d.db.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT log_id FROM `+d.db.table("parked")+` WHERE relay = $1 AND log_id = ANY ($2::bigint[]) AND state = ANY ($3::text[])`,
			d.name, logIDs, states)
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		missing := slices.DeleteFunc(slices.Clone(logIDs), func(id int64) bool { return slices.Contains(found, id) })
		if len(missing) > 0 {
			return fmt.Errorf("events %v are %w, or not %s: Parked shows what is; nothing was asked for", missing, ErrNotParked, strings.Join(states, " or "))
		}
		_, err = tx.Exec(ctx, `INSERT INTO `+d.db.table("relay_request")+` (relay, log_id, action, requested_by)
			SELECT $1, id, $2, coalesce(nullif($4::text, ''), session_user) FROM unnest($3::bigint[]) AS id`, d.name, action, logIDs, d.by)
		return err
	})
	if err != nil {
		return d.did(action+" events of %q", err)
	}
	wake(d.db.schema)
	return nil
}
