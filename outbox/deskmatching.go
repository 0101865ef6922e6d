package outbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// MaxMatching is how many events one call of ReplayMatching or DiscardMatching asks
// for at most, so that a large heap is worked off in steps that somebody looks at.
const MaxMatching = 20_000

// Matched is what a filter means.
type Matched struct {
	Events int   // all of them
	Bytes  int64 // of their payloads
	// By state. ReplayMatching acts on those given up, DiscardMatching on those given
	// up, retrying or waiting.
	GivenUp, Retrying, Waiting, Discarded int
}

// Matching counts what the filter means, and changes nothing: what to try before
// ReplayMatching or DiscardMatching. What is wrong with the filter wraps
// ErrInvalidRequest.
func (d *Desk) Matching(ctx context.Context, filter ParkedFilter) (m Matched, err error) {
	const what = "count the parked events of %q"
	if err := filter.check(); err != nil {
		return m, d.did(what, err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.db.timeout)
	defer cancel()
	where, args := filter.where()
	err = d.db.pool.QueryRow(ctx, `SELECT count(*), coalesce(sum(octet_length(p.payload)), 0)::bigint,
			count(*) FILTER (WHERE p.state = 'given_up'), count(*) FILTER (WHERE p.state = 'retrying'),
			count(*) FILTER (WHERE p.state = 'waiting'), count(*) FILTER (WHERE p.state = 'discarded')
		FROM `+d.db.table("parked")+` AS p WHERE p.relay = $1`+where, append([]any{d.name}, args...)...).
		Scan(&m.Events, &m.Bytes, &m.GivenUp, &m.Retrying, &m.Waiting, &m.Discarded)
	if err != nil {
		return m, d.did(what, err)
	}
	return m, nil
}

// ReplayMatching asks for all given up events that filter means to be tried again,
// as Replay does, and tells for how many. It asks for MaxMatching at most, those
// of the lowest ids: when n is that, call it again for the rest. Events that a replay
// is asked for already are left as they are, so that asking twice does no harm.
//
// The error wraps ErrNothingMatches if there is none to ask for, and
// ErrInvalidRequest for a filter that is empty without saying All, or wrong.
func (d *Desk) ReplayMatching(ctx context.Context, filter ParkedFilter) (n int, err error) {
	return d.askMatching(ctx, actionReplay, []ParkedState{ParkedGivenUp}, filter)
}

// DiscardMatching asks for all parked events that filter means not to be sent any
// more, as Discard does, and tells for how many; discarded ones are left as they
// are. It is bounded, and refuses, as ReplayMatching does.
func (d *Desk) DiscardMatching(ctx context.Context, filter ParkedFilter) (n int, err error) {
	return d.askMatching(ctx, actionDiscard, []ParkedState{ParkedGivenUp, ParkedRetrying, ParkedWaiting}, filter)
}

// hashRequests keeps the planner, which may know nothing yet of the requests that
// were just made, from walking all of them for each event.
const hashRequests = `SELECT set_config('enable_nestloop', 'off', true)`

func (d *Desk) askMatching(ctx context.Context, action string, states []ParkedState, filter ParkedFilter) (n int, err error) {
	what := action + " parked events of %q"
	if err := filter.check(); err != nil {
		return 0, d.did(what, err)
	}
	if filter.isEmpty() && !filter.All {
		return 0, d.did(what, fmt.Errorf("%w: the filter has no condition: set one, or ParkedFilter.All to mean every event", ErrInvalidRequest))
	}
	for _, s := range filter.States {
		if !slices.Contains(states, s) {
			return 0, d.did(what, fmt.Errorf("%w: ParkedFilter.States has %q, which nobody can %s: leave it out, or name %v", ErrInvalidRequest, s, action, states))
		}
	}
	if len(filter.States) == 0 {
		filter.States = states
	}
	where, args := filter.where()
	args = append([]any{d.name}, args...)
	// One statement, and so one snapshot: what it counts is what it asks for.
	sql := fmt.Sprintf(`WITH chosen AS (
			SELECT p.log_id FROM %[1]s AS p
			WHERE p.relay = $1 %[3]s AND NOT EXISTS (
				SELECT FROM %[2]s AS q WHERE q.relay = $1 AND q.done_at IS NULL AND q.log_id = p.log_id AND q.action = $%[4]d)
			ORDER BY p.log_id LIMIT $%[5]d
		), asked AS (
			INSERT INTO %[2]s (relay, action, log_id, requested_by)
			SELECT $1, $%[4]d, log_id, coalesce(nullif($%[6]d::text, ''), session_user) FROM chosen ORDER BY log_id
			RETURNING 1
		)
		SELECT count(*) FROM asked`,
		d.db.table("parked"), d.db.table("relay_request"), where, len(args)+1, len(args)+2, len(args)+3)
	err = d.db.write(ctx, true, statement{sql: hashRequests, rows: 1},
		statement{sql: sql, args: append(args, action, MaxMatching, d.by), scan: func(row pgx.Row) error { return row.Scan(&n) }})
	if err != nil {
		return 0, d.did(what, err)
	}
	if n == 0 {
		return 0, d.did(what, fmt.Errorf("%w that is %v and not asked for already: Matching and Parked show what there is", ErrNothingMatches, filter.States))
	}
	wake(d.db.schema)
	return n, nil
}
