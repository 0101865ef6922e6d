package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// Parked is the desk for the events that one relay has put aside: what is there,
// why, and what is to become of it. It asks; the holder of the relay's lease
// carries out, in the order of each event's key, within about a second. It is safe
// for use by several goroutines.
type Parked struct {
	db    *database
	relay string
}

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

// NewParked opens the desk of the relay of that name. schema may be empty for
// migrations.DefaultSchema.
func NewParked(pool *pgxpool.Pool, schema, relay string) (*Parked, error) {
	var faults []error
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if schema == "" {
		schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(schema); err != nil {
		faults = append(faults, err)
	}
	if !relayName.MatchString(relay) {
		faults = append(faults, fmt.Errorf("relay is %.120q: use the RelayConfig.Name of the relay", relay))
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("outbox.NewParked: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return &Parked{db: &database{pool: pool, schema: schema, timeout: 10 * time.Second}, relay: relay}, nil
}

// Get gives the parked event of a log id, or an error that wraps ErrNotParked.
func (p *Parked) Get(ctx context.Context, logID int64) (ParkedEvent, error) {
	found, err := p.query(ctx, `AND log_id = $2`, logID)
	if err != nil {
		return ParkedEvent{}, err
	}
	if len(found) == 0 {
		return ParkedEvent{}, fmt.Errorf("event %d of relay %q: %w", logID, p.relay, ErrNotParked)
	}
	return found[0], nil
}

// List gives up to limit parked events above the log id after, in order. Start
// with 0, go on with the last one's id.
func (p *Parked) List(ctx context.Context, after int64, limit int) ([]ParkedEvent, error) {
	if limit < 1 {
		return nil, fmt.Errorf("list the parked events of relay %q: limit is %d, use at least 1: %w", p.relay, limit, ErrInvalidConfig)
	}
	return p.query(ctx, `AND log_id > $2 ORDER BY log_id LIMIT $3`, after, limit)
}

func (p *Parked) query(ctx context.Context, where string, args ...any) ([]ParkedEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, p.db.timeout)
	defer cancel()
	rows, err := p.db.pool.Query(ctx, `SELECT log_id, state, attempts, replays, coalesce(last_error, ''), event_id::text, event_type, topic,
		partition_key, octet_length(payload), parked_at, changed_at FROM `+p.db.table("parked")+` WHERE relay = $1 `+where, append([]any{p.relay}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("read the parked events of relay %q: %w", p.relay, explain(p.db.schema, err))
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e ParkedEvent, err error) {
		var id string
		if err = row.Scan(&e.LogID, &e.State, &e.Attempts, &e.Replays, &e.LastError, &id, &e.EventType, &e.Topic, &e.Key, &e.Bytes, &e.ParkedAt, &e.ChangedAt); err == nil {
			e.EventID, err = uuid.Parse(id)
		}
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the parked events of relay %q: %w", p.relay, explain(p.db.schema, err))
	}
	return found, nil
}

// Replay asks for given up events to be tried again, from their first attempt on.
// Under BlockKey the key goes on in order from there; under SkipKey it has gone on
// without them, and they carry the header events.HeaderReplayed. Nothing is asked
// for unless all of logIDs are parked and given up; otherwise the error wraps
// ErrNotParked and names them.
func (p *Parked) Replay(ctx context.Context, logIDs ...int64) error {
	return p.ask(ctx, actionReplay, []string{stateGivenUp}, logIDs)
}

// Discard asks for parked events not to be sent any more; their keys go on without
// them. One that is being sent at that moment may still arrive. Nothing is asked
// for unless all of logIDs are parked and not discarded yet; otherwise the error
// wraps ErrNotParked and names them.
func (p *Parked) Discard(ctx context.Context, logIDs ...int64) error {
	return p.ask(ctx, actionDiscard, []string{stateGivenUp, stateRetrying, stateWaiting}, logIDs)
}

func (p *Parked) ask(ctx context.Context, action string, states []string, logIDs []int64) error {
	if len(logIDs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.db.timeout)
	defer cancel()
	err := pgx.BeginFunc(ctx, p.db.pool, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT log_id FROM `+p.db.table("parked")+` WHERE relay = $1 AND log_id = ANY ($2::bigint[]) AND state = ANY ($3::text[])`,
			p.relay, logIDs, states)
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		missing := slices.DeleteFunc(slices.Clone(logIDs), func(id int64) bool { return slices.Contains(found, id) })
		if len(missing) > 0 {
			return fmt.Errorf("events %v are %w, or not %s: List shows what is; nothing was asked for", missing, ErrNotParked, strings.Join(states, " or "))
		}
		_, err = tx.Exec(ctx, `INSERT INTO `+p.db.table("relay_request")+` (relay, log_id, action)
			SELECT $1, id, $2 FROM unnest($3::bigint[]) AS id`, p.relay, action, logIDs)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s events of relay %q: %w", action, p.relay, explain(p.db.schema, err))
	}
	wake(p.db.schema)
	return nil
}
