package outbox

import (
	"context"
	"time"
)

// The states of a parked row.
const (
	stateRetrying  = "retrying"  // failing; its attempts go on
	stateWaiting   = "waiting"   // behind another of its key
	stateGivenUp   = "given_up"  // out of attempts, or refused for good
	stateDiscarded = "discarded" // by a person; kept so that a rewind does not send it
)

// triesBeforeParking is how often an event is tried in its place when nothing
// tells whether it or the broker is at fault.
const triesBeforeParking = 3

// toPark chooses the events to put aside: when failing ones are about to fill the
// window, or are all that is left of a round. A run from the front of the window
// up to the first event that is on its way is taken, settled ones included; upTo
// is its length. The chosen belong to the caller. At a hand-over all of items goes,
// if the broker is not down: events behind the failing ones were sent.
func (t *tenure) toPark(items []*item, bytes int, ended, handover bool) (chosen []*item, upTo int) {
	failing, unavailable := t.health.verdict()
	if unavailable || handover && t.health.isDown() {
		return nil, 0 // the broker is away: nothing is parked
	}
	crammed := t.window.crammed()
	full := crammed || handover || len(items) >= t.cfg.Window/2 || bytes >= t.cfg.WindowBytes/2
	if !full && !ended || !handover && t.crowded(nil) {
		return nil, 0
	}
	i := t.settled
	for ; i < len(items); i++ {
		if items[i].state.Load() == stSettled {
			continue
		}
		if !items[i].state.CompareAndSwap(stHeld, stParking) {
			break
		}
		chosen = append(chosen, items[i])
	}
	if !full && i < len(items) {
		t.hold(chosen) // the others are about to come back: one transaction for all
		return nil, 0
	}
	alone := i == len(items) && ((ended || crammed) && failing < outageKeys || ended && t.moreWaits())
	blocked := map[laneKey]bool{}
	for j, it := range chosen {
		k := keyOf(it)
		waits := it.retry == nil && (blocked[k] || t.parkedKeys[k] > 0)
		if waits || it.giveUp || it.retry != nil && (handover || t.health.accepts(it.failedAt) || alone && (it.tries >= triesBeforeParking || it.hangs())) {
			blocked[k] = true
			continue
		}
		// It may be the broker. What stands before it can go.
		t.hold(chosen[j:])
		chosen = chosen[:j]
		for i = t.settled; i < len(items) && items[i] != it; i++ {
		}
		break
	}
	return chosen, i
}

func (t *tenure) hold(items []*item) {
	for _, it := range items {
		it.state.Store(stHeld)
	}
}

// moreWaits tells whether the log has more than the present round: events that
// would show whether the broker accepts anything.
func (t *tenure) moreWaits() bool { return t.idle.lastID > t.chain.pos.round.upper }

// park writes the chosen events to the parked table, together with the link that
// passes them and everything settled before the upTo-th of the window.
func (t *tenure) park(hard context.Context, items []*item, upTo int, chosen []*item, done []completion) error {
	hit(fpBeforePark)
	ids := make([]int64, len(chosen))
	states := make([]string, len(chosen))
	attempts := make([]int32, len(chosen))
	errs := make([]string, len(chosen))
	for i, it := range chosen {
		ids[i], states[i], attempts[i], errs[i] = it.LogID, it.parkedState(), int32(it.attempts), it.lastErr
	}
	insert := t.putAside(ids, states, attempts, errs)
	if err := t.chain.advance(hard, items[upTo-1].LogID, true, append(t.completing(done), insert...)...); err != nil {
		return err
	}
	hit(fpAfterPark)
	t.aside.add(chosen...)
	told(t.log, t.hooks.Parked, t.parkedInfo(chosen))
	for _, it := range chosen {
		t.parkedNow(it)
	}
	t.settled = upTo
	t.passed(upTo)
	t.completed(done)
	return nil
}

// putAside copies events into the parked table inside the database, whole: retention
// removes the log. All or nothing: a row that is not there to be copied divides by
// zero, and the link does not pass it.
func (s *seat) putAside(ids []int64, states []string, attempts []int32, errs []string) []statement {
	put := statement{rows: 1, args: []any{s.who.name, ids, states, attempts, errs, len(ids)},
		sql: `WITH put AS (INSERT INTO ` + s.db.table("parked") + ` (relay, log_id, slot, state, attempts, last_error,
				xid, schema_version, event_id, topic, event_type, partition_key, content_type, headers, payload)
			SELECT $1, o.id, o.slot, p.state, p.attempts, nullif(p.error, ''),
				o.xid, o.schema_version, o.event_id, o.topic, o.event_type, o.partition_key, o.content_type, o.headers, o.payload
			FROM unnest($2::bigint[], $3::text[], $4::int[], $5::text[]) AS p (id, state, attempts, error)
			JOIN ` + s.db.table("outbox") + ` AS o ON o.id = p.id
			RETURNING 1)
			SELECT 1 / CASE count(*) WHEN $6::bigint THEN 1 ELSE 0 END FROM put`}
	return []statement{{sql: planAlongIndexes, rows: 1}, put, {sql: planAsBefore, rows: 1}}
}

// A plan that a session has made while the log was empty reads all of it, and is kept
// when the log has grown, until the next ANALYZE. A handler's statements may follow in
// the same transaction: they find the settings as they were.
const (
	planAlongIndexes = `SELECT set_config('postbus.seqscan', current_setting('enable_seqscan'), true), set_config('postbus.bitmapscan', current_setting('enable_bitmapscan'), true),
		set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)`
	planAsBefore = `SELECT set_config('enable_seqscan', current_setting('postbus.seqscan'), true), set_config('enable_bitmapscan', current_setting('postbus.bitmapscan'), true)`
)

// unpark deletes parked events that are done with.
func (s *seat) unpark(ids []int64) statement {
	return statement{rows: anyRows, args: []any{s.who.name, ids},
		sql: `DELETE FROM ` + s.db.table("parked") + ` WHERE relay = $1 AND log_id = ANY ($2::bigint[])`}
}

// reparked writes what has become of parked events that were tried again.
func (s *seat) reparked(ids []int64, states []string, attempts []int32, errs []string) statement {
	return statement{rows: anyRows, args: []any{s.who.name, ids, states, attempts, errs},
		sql: `UPDATE ` + s.db.table("parked") + ` AS t SET state = u.state, attempts = u.attempts, last_error = nullif(u.error, ''), changed_at = clock_timestamp()
			FROM unnest($2::bigint[], $3::text[], $4::int[], $5::text[]) AS u (id, state, attempts, error)
			WHERE t.relay = $1 AND t.log_id = u.id`}
}

func (t *tenure) parkedInfo(chosen []*item) ParkedInfo {
	info := ParkedInfo{Name: t.who.name}
	for _, it := range chosen {
		switch it.parkedState() {
		case stateGivenUp:
			info.GivenUp++
		case stateRetrying:
			info.Retrying++
		default:
			info.Waiting++
		}
	}
	return info
}

func (it *item) parkedState() string {
	switch {
	case it.giveUp:
		return stateGivenUp
	case it.retry != nil:
		return stateRetrying
	}
	return stateWaiting
}

// parkedNow replaces an event of the window by a copy that keeps no chunk in memory.
func (t *tenure) parkedNow(it *item) {
	p := it.asParked()
	t.keepParked(p)
	t.laneOf(it.Key).replace(it, p) // which may send p at once: what it has become by then is not in the table
	it.state.Store(stSettled)
	if it.giveUp {
		t.log.Warn("event given up", "log_id", it.LogID, "event_id", it.EventID, "event_type", it.EventType, "attempts", it.attempts, "max_attempts", t.cfg.Retry.MaxAttempts, "error", it.lastErr, "key_blocked", t.cfg.Policy == BlockKey)
		t.afterGiveUp(p)
	}
}

// afterGiveUp lets the key go on, now that the giving up is committed, if that is the policy.
func (t *tenure) afterGiveUp(p *item) {
	if t.cfg.Policy == SkipKey {
		t.dropParked(p)
		t.laneOf(p.Key).remove(p)
	}
}

// keepParked and dropParked keep account of the parked events that stand in lanes.
func (s *seat) keepParked(p *item) {
	s.parked[p.LogID] = p
	s.parkedKeys[keyOf(p)]++
}

func (s *seat) dropParked(p *item) {
	delete(s.parked, p.LogID)
	if k := keyOf(p); s.parkedKeys[k] > 1 {
		s.parkedKeys[k]--
	} else {
		delete(s.parkedKeys, k)
	}
}

// What has happened to a parked event and is to be written.
type completionKind uint8

const (
	doneTried   completionKind = iota // one more failed attempt
	doneSent                          // accepted by the broker
	doneGivenUp                       // no more attempts
)

type completion struct {
	it       *item
	kind     completionKind
	attempts int
	lastErr  string
}

func (t *tenure) complete(c completion) {
	t.mu.Lock()
	t.completions = append(t.completions, c)
	t.mu.Unlock()
}

// pending gives the completions to write. urgent: somebody waits for one.
func (t *tenure) pending() (done []completion, urgent bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.completions {
		urgent = urgent || c.kind != doneTried
	}
	return t.completions[:len(t.completions):len(t.completions)], urgent
}

// completing gives the statements for done. The last word on an event counts.
func (t *tenure) completing(done []completion) []statement {
	if len(done) == 0 {
		return nil
	}
	last := make(map[int64]completion, len(done))
	for _, c := range done {
		if t.parked[c.it.LogID] == c.it { // not if it was discarded meanwhile
			last[c.it.LogID] = c
		}
	}
	var sent, ids []int64
	var states, errs []string
	var attempts []int32
	for id, c := range last {
		switch c.kind {
		case doneSent:
			sent = append(sent, id)
			continue
		case doneGivenUp:
			states = append(states, stateGivenUp)
		case doneTried:
			states = append(states, stateRetrying)
		}
		ids, attempts, errs = append(ids, id), append(attempts, int32(c.attempts)), append(errs, c.lastErr)
	}
	var s []statement
	if len(sent) > 0 {
		s = append(s, t.unpark(sent))
	}
	if len(ids) > 0 {
		s = append(s, t.reparked(ids, states, attempts, errs))
	}
	return s
}

// completed tells the lanes what has been written.
func (t *tenure) completed(done []completion) {
	if len(done) == 0 {
		return
	}
	t.mu.Lock()
	t.completions = t.completions[len(done):]
	t.mu.Unlock()
	t.lastLink = time.Now()
	hit(fpAfterComplete)
	for _, c := range done {
		if t.parked[c.it.LogID] != c.it {
			continue // discarded meanwhile
		}
		switch c.kind {
		case doneSent:
			t.dropParked(c.it)
			t.aside.remove(c.it)
		case doneGivenUp:
			t.log.Warn("event given up", "log_id", c.it.LogID, "event_id", c.it.EventID, "event_type", c.it.EventType, "attempts", c.attempts, "max_attempts", t.cfg.Retry.MaxAttempts, "error", c.lastErr, "key_blocked", t.cfg.Policy == BlockKey)
			t.afterGiveUp(c.it)
		}
	}
}
