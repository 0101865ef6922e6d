package outbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// request is what a person asks of a parked event, or of its owner (steer.go).
type request struct {
	id     int64
	action string
	logID  int64
	rate   *float64
	types  []string
	by     string
}

const (
	actionReplay  = "replay"
	actionDiscard = "discard"
)

const requestsAtOnce = 1000

// carryOut does what is asked, in the parked events' own lanes: the change of the
// rows, the completion of the requests and the link commit together, so that a
// crash repeats it harmlessly. What is asked of the relay as a whole takes an empty
// window: errSteered.
func (t *tenure) carryOut(hard context.Context) (acted bool, err error) {
	requests, err := t.requests(hard)
	if err != nil || len(requests) == 0 {
		return false, err
	}
	if t.steerable(requests) {
		return false, errSteered
	}
	if requests = ofParked(requests); len(requests) == 0 {
		return false, nil
	}
	hit(fpBeforeRequest)
	p, err := t.plan(hard, requests)
	if err != nil {
		return false, err
	}
	if len(p.requests) == 0 {
		return false, nil
	}
	if err := t.chain.advance(hard, t.chain.pos.lastID, true, t.carrying(p)...); err != nil {
		return false, err
	}
	hit(fpAfterRequest)
	p.tell(t)
	return true, nil
}

// ofParked are those that are about parked events.
func ofParked(requests []request) []request {
	return slices.DeleteFunc(requests, func(r request) bool { return r.steers() })
}

// plan looks up what the requests are about and decides on each.
func (s *seat) plan(hard context.Context, requests []request) (*plan, error) {
	ids := make([]int64, len(requests))
	for i, r := range requests {
		ids[i] = r.logID
	}
	found, err := s.parkedItems(hard, `log_id = ANY ($4::bigint[])`, ids)
	if err != nil {
		return nil, err
	}
	states, err := s.parkedStates(hard, ids)
	if err != nil {
		return nil, err
	}
	byID := make(map[int64]*item, len(found))
	for _, it := range found {
		byID[it.LogID] = it
	}

	p := &plan{}
	for _, r := range requests {
		s.decide(r, states, byID, p)
	}
	return p, nil
}

// plan is what one transaction carries out, and what the lanes are told after it.
type plan struct {
	requests  []int64
	outcomes  []string
	replayed  []*item
	discarded []int64
	frozen    []*item // discarded ones that stand in a lane: not sent meanwhile
	gone      []*item // all discarded ones
	replayIDs []int64
}

func (p *plan) done(r request, outcome string) {
	p.requests, p.outcomes = append(p.requests, r.id), append(p.outcomes, outcome)
}

// decide plans one request, by the state that those before it have left.
func (s *seat) decide(r request, states map[int64]string, byID map[int64]*item, p *plan) {
	state, isParked := states[r.logID]
	switch {
	case !isParked:
		p.done(r, "not parked: nothing to do")
	case state == stateDiscarded:
		p.done(r, "already discarded: nothing to do")
	case r.action == actionReplay && state != stateGivenUp:
		p.done(r, "still being tried: nothing to do")
	case r.action == actionReplay:
		states[r.logID] = stateRetrying
		p.replayIDs = append(p.replayIDs, r.logID)
		p.replayed = append(p.replayed, byID[r.logID])
		p.done(r, "replayed")
	default:
		it := s.parked[r.logID]
		if it != nil && !it.state.CompareAndSwap(stParked, stParking) {
			return // in a call, or just sent: asked again at the next look
		}
		if it != nil {
			p.frozen = append(p.frozen, it)
		}
		states[r.logID] = stateDiscarded
		p.gone = append(p.gone, byID[r.logID])
		p.discarded = append(p.discarded, r.logID)
		p.done(r, "discarded")
	}
}

// carrying gives the statements of p.
func (s *seat) carrying(p *plan) []statement {
	parked := s.db.table("parked")
	all := []statement{{rows: anyRows, args: []any{p.requests, p.outcomes},
		sql: `UPDATE ` + s.db.table("relay_request") + ` AS r SET done_at = clock_timestamp(), outcome = u.outcome
			FROM unnest($1::bigint[], $2::text[]) AS u (id, outcome) WHERE r.id = u.id`}}
	if len(p.replayIDs) > 0 {
		all = append(all, statement{rows: anyRows, args: []any{s.who.name, p.replayIDs},
			sql: `UPDATE ` + parked + ` SET state = 'retrying', attempts = 0, replays = replays + 1, changed_at = clock_timestamp()
				WHERE relay = $1 AND log_id = ANY ($2::bigint[])`})
	}
	if len(p.discarded) > 0 {
		all = append(all, statement{rows: anyRows, args: []any{s.who.name, p.discarded},
			sql: `UPDATE ` + parked + ` SET state = 'discarded', changed_at = clock_timestamp()
				WHERE relay = $1 AND log_id = ANY ($2::bigint[])`})
	}
	return all
}

// stillReplayed leaves out what was replayed and then discarded in one go.
func (p *plan) stillReplayed() []*item {
	return slices.DeleteFunc(slices.Clone(p.replayed), func(it *item) bool { return slices.Contains(p.discarded, it.LogID) })
}

// tell lets the lanes know what has been committed.
func (p *plan) tell(t *tenure) {
	for _, it := range p.frozen {
		t.dropParked(it)
		t.laneOf(it.Key).remove(it)
	}
	t.aside.remove(p.gone...)
	for _, fresh := range p.stillReplayed() {
		l := t.laneOf(fresh.Key)
		if it := t.parked[fresh.LogID]; it != nil {
			l.resume(it) // BlockKey: it stands there, at the head of its key
			continue
		}
		// SkipKey: its key has gone on without it.
		fresh.replays++
		fresh.attempts, fresh.retry, fresh.giveUp = 0, nil, false
		_ = t.markReplayed(fresh)
		t.keepParked(fresh)
		l.add(fresh)
		l.wake()
	}
}

func (s *seat) requests(hard context.Context) ([]request, error) {
	ctx, cancel := context.WithTimeout(hard, s.db.timeout)
	defer cancel()
	rows, err := s.db.pool.Query(ctx, `SELECT id, action, coalesce(log_id, 0), rate, types, requested_by FROM `+s.db.table("relay_request")+`
		WHERE relay = $1 AND done_at IS NULL ORDER BY id LIMIT $2`, s.who.name, requestsAtOnce)
	if err != nil {
		return nil, fmt.Errorf("read the requests to %s: %w", s.who, explain(s.db.schema, err))
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r request, err error) {
		return r, row.Scan(&r.id, &r.action, &r.logID, &r.rate, &r.types, &r.by)
	})
	if err != nil {
		return nil, fmt.Errorf("read the requests to %s: %w", s.who, explain(s.db.schema, err))
	}
	return all, nil
}

func (s *seat) parkedStates(hard context.Context, ids []int64) (map[int64]string, error) {
	ctx, cancel := context.WithTimeout(hard, s.db.timeout)
	defer cancel()
	rows, err := s.db.pool.Query(ctx, `SELECT log_id, state FROM `+s.db.table("parked")+` WHERE relay = $1 AND log_id = ANY ($2::bigint[])`, s.who.name, ids)
	if err != nil {
		return nil, fmt.Errorf("read the parked events of %s: %w", s.who, err)
	}
	states := map[int64]string{}
	var id int64
	var state string
	_, err = pgx.ForEachRow(rows, []any{&id, &state}, func() error { states[id] = state; return nil })
	return states, err
}
