package outbox

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// ErrNotYet marks an error of a durable handler (wrap it) as no fault of the event:
// it cannot be handled yet, a newer program must be deployed first, say. It is tried
// again for ever, and holds up its key.
var ErrNotYet = errors.New("the event cannot be handled yet")

// conflictRetries is how often what conflicts with another transaction is tried
// again at once.
const conflictRetries = 5

// mostDoubted bounds how many keys a probe passes over to find one that gets
// through: each probe twice as many as the one before.
const mostDoubted = 512

// handleAhead handles the next events of the log: up to a batch of those whose keys
// go on, and puts aside those that wait behind a failing one, all up to one link.
func (t *duty) handleAhead(hard, work context.Context, now time.Time, adm admission) (acted bool, wait time.Duration, err error) {
	most := t.cfg.Batch
	if adm.probe || t.ahead[0].LogID <= t.soloUpTo {
		most = 1
	}
	allowed, wait := t.pace.try(most, now)
	if wait > 0 {
		return false, wait, nil
	}
	var run, waiting []*item
	doubted := map[laneKey]bool{} // passed over by a probe, since they have failed
	n := 0
	for ; n < len(t.ahead) && len(run) < allowed && len(waiting) < 1000; n++ {
		it := t.ahead[n]
		if most > 1 && it.LogID <= t.soloUpTo {
			break
		}
		if h, ok := t.held[it.LogID]; ok && h != nil {
			n++ // its place has come: what follows of its key is looked at when it stands there
			break
		} else if ok {
			continue
		}
		if q := t.keys[keyOf(it)]; q != nil && q.items[0].LogID < it.LogID {
			if t.crowded(waiting) {
				break
			}
			waiting = append(waiting, it)
			continue
		}
		if k := keyOf(it); adm.fresh && (doubted[k] || len(doubted) < t.doubted) && !t.crowded(waiting) {
			// If another one gets through this was no outage, and they are put aside with it.
			doubted[k] = true
			waiting = append(waiting, it)
			continue
		}
		run = append(run, it)
	}
	if len(doubted) > 0 && len(run) == 0 { // there are fewer: the last ones then, each in its turn
		if t.fromEnd++; t.fromEnd > len(doubted) {
			t.fromEnd = 1
		}
		t.doubted = len(doubted) - t.fromEnd
		t.health.unused()
		return true, 0, nil
	}
	if n == 0 {
		return false, time.Second, nil // crowded: until one gets through
	}
	lastID := t.ahead[n-1].LogID
	aside := t.waitingAside(waiting)
	if len(run) == 0 {
		if adm.probe {
			t.health.unused()
		}
		if err := t.chain.advance(hard, lastID, true, aside...); err != nil {
			return false, 0, err
		}
	} else {
		err := t.tried(work, lastID, run, nil, aside...)
		switch {
		case err == nil:
			t.doubted, t.fromEnd = 0, 0
			t.health.report(time.Now(), adm.probe, len(run), nil, false)
		case settledOrStop(work, err):
			return false, 0, err
		case len(run) > 1:
			t.soloUpTo = lastID // which of them it is is found out one by one
			return true, 0, nil
		default:
			// n may be more than one: what waits behind others goes with it.
			return true, 0, t.failed(hard, lastID, n, run[0], err, waiting, aside, adm.probe)
		}
	}
	t.passed(n, waiting)
	return true, 0, nil
}

// tried runs the handler, and again if the database says that it was in somebody's way.
func (t *duty) tried(work context.Context, lastID int64, items []*item, payloads map[int64][]byte, also ...statement) (err error) {
	for range conflictRetries {
		err = t.effects(work, lastID, items, payloads, also...)
		for _, f := range t.after { // with the connection given back
			t.afterCommit(f)
		}
		t.after = nil
		var h *handlerError
		if !errors.As(err, &h) || !conflicts(err) || work.Err() != nil {
			return err
		}
	}
	return err
}

// failed notes the failure of an event of the log: it is put aside, passed, and tried
// again in its time. In an outage it stays where it is, and counts nothing.
func (t *duty) failed(hard context.Context, lastID int64, n int, it *item, cause error, waiting []*item, aside []statement, probe bool) error {
	now := time.Now()
	if !t.counts(now, probe, it, cause) {
		if probe {
			if t.doubted = max(1, 2*t.doubted); t.doubted > mostDoubted {
				t.doubted = 0
			}
		}
		return nil
	}
	if t.crowded(nil) {
		t.laterThan = now.Add(time.Second)
		return nil
	}
	hit(fpBeforeSetAside)
	after := t.judge(it, cause)
	if err := t.chain.advance(hard, lastID, true, append(aside,
		t.putAside([]int64{it.LogID}, []string{it.parkedState()}, []int32{int32(it.attempts)}, []string{it.lastErr})...)...); err != nil {
		return err
	}
	hit(fpAfterSetAside)
	p := it.asParked()
	t.aside.add(p)
	if t.policy == BlockKey || !p.giveUp {
		t.keepParked(p)
		t.put(p)
		t.queue(keyOf(p)).due = now.Add(after)
		t.settleQueue(t.queue(keyOf(p)))
	}
	t.passed(n, waiting)
	info := ParkedInfo{Name: t.who.name, Retrying: 1}
	if it.giveUp {
		info.Retrying, info.GivenUp = 0, 1
	}
	told(t.log, t.hooks.Parked, info)
	t.tellFailure(it, after)
	return nil
}

// again tries the first event of a queue of those put aside.
func (t *duty) again(hard, work context.Context, q *keyQueue) error {
	it, probe := q.items[0], t.health.isDown()
	payloads, err := t.loadPayloads(work, []*item{it})
	if err != nil {
		return err
	}
	hit(fpBeforeComplete)
	err = t.tried(work, t.chain.pos.lastID, []*item{it}, payloads, t.unpark([]int64{it.LogID}))
	switch {
	case err == nil:
		hit(fpAfterComplete)
		t.health.report(time.Now(), probe, 1, nil, false)
		t.dropParked(it)
		t.takeOut(it)
		t.aside.remove(it)
		return nil
	case settledOrStop(work, err):
		return err
	}
	now := time.Now()
	if !t.counts(now, probe, it, err) {
		q.due = now.Add(t.cfg.Retry.Initial)
		t.settleQueue(q)
		return nil
	}
	after := t.judge(it, err)
	state := stateRetrying
	if it.giveUp {
		state = stateGivenUp
	}
	if err := t.chain.advance(hard, t.chain.pos.lastID, true, t.reparked([]int64{it.LogID}, []string{state}, []int32{int32(it.attempts)}, []string{it.lastErr})); err != nil {
		return err
	}
	q.due = now.Add(after)
	if it.giveUp && t.policy == SkipKey {
		t.dropParked(it)
		t.takeOut(it)
	} else {
		t.settleQueue(q)
	}
	t.tellFailure(it, after)
	return nil
}

// counts tells whether a failure is one of the event, or of all in an outage. A
// handler that gives its verdict on an event works, however many it refuses.
func (t *duty) counts(now time.Time, probe bool, it *item, cause error) bool {
	unavailable := errors.Is(cause, ErrUnavailable)
	if !unavailable && (errors.Is(cause, ErrPermanent) || errors.Is(cause, ErrNotYet)) {
		t.health.report(now, probe, 0, nil, false)
		return true
	}
	return t.health.report(now, probe, 0, []laneKey{keyOf(it)}, unavailable)
}

// judge counts an attempt, and says after how long the next one follows.
func (t *duty) judge(it *item, cause error) (after time.Duration) {
	it.lastErr = errorText(cause)
	notYet := errors.Is(cause, ErrNotYet)
	if !notYet {
		it.attempts++
	}
	if it.retry == nil {
		it.retry = t.cfg.Retry.backoff(max(1, it.attempts))
	}
	if !notYet && (errors.Is(cause, ErrPermanent) || it.attempts >= t.cfg.Retry.MaxAttempts) {
		it.giveUp = true
		return 0
	}
	return it.retry.NextBackOff()
}

func (t *duty) tellFailure(it *item, after time.Duration) {
	info := FailureInfo{Name: t.who.name, LogID: it.LogID, EventID: it.EventID, EventType: it.EventType, Key: it.Key, Attempts: it.attempts, Error: it.lastErr, After: after}
	if it.giveUp {
		t.log.Warn("event given up", "log_id", it.LogID, "event_id", it.EventID, "event_type", it.EventType, "attempts", it.attempts, "max_attempts", t.cfg.Retry.MaxAttempts, "error", it.lastErr, "key_blocked", t.policy == BlockKey)
		told(t.log, t.hooks.GivenUp, info)
		return
	}
	level := slog.LevelDebug
	if it.attempts <= 1 {
		level = slog.LevelInfo // once for each event
	}
	t.log.Log(context.Background(), level, "event put aside, to be handled again", "log_id", it.LogID, "event_id", it.EventID, "event_type", it.EventType, "attempts", it.attempts, "after", after.Round(time.Millisecond), "error", it.lastErr)
	told(t.log, t.hooks.Retried, info)
}

// waitingAside puts aside what waits behind an event of its key.
func (t *duty) waitingAside(items []*item) []statement {
	if len(items) == 0 {
		return nil
	}
	ids, states := make([]int64, len(items)), make([]string, len(items))
	for i, it := range items {
		ids[i], states[i] = it.LogID, stateWaiting
	}
	return t.putAside(ids, states, make([]int32, len(items)), make([]string, len(items)))
}

// waitsBehind keeps what was put aside in its key's queue.
func (t *duty) waitsBehind(items []*item) {
	for _, it := range items {
		p := it.asParked()
		t.keepParked(p)
		t.put(p)
	}
	t.aside.add(items...)
}

// asParked is a copy of an event of the log that keeps no chunk in memory.
func (it *item) asParked() *item {
	p := &item{Message: it.Message, slot: it.slot, bytes: it.bytes, attempts: it.attempts, retry: it.retry,
		lastErr: it.lastErr, giveUp: it.giveUp, parked: true, tries: it.tries, failedAt: it.failedAt, left: it.left}
	p.Payload = nil
	p.state.Store(stParked)
	return p
}
