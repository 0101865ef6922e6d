package outbox

import (
	"context"
	"time"
)

// linkEvery is how long a settled event waits at most for its link; under load a
// link is written for every eighth of the window.
const linkEvery = 50 * time.Millisecond

// completionsEvery is how long a counted attempt waits at most to be written.
const completionsEvery = time.Second

// settle writes down what has been settled since the last link, puts aside what
// holds the window, and finishes the round.
func (t *tenure) settle(hard context.Context) (acted bool, wait time.Duration, err error) {
	items, bytes, ended := t.window.view()
	for t.settled < len(items) && items[t.settled].state.Load() == stSettled {
		t.settled++
	}
	// After the scan: an event sent behind a parked one of its key is then never
	// passed by a link that does not also complete that one.
	done, urgent := t.pending()

	switch {
	case t.active && ended && t.settled == len(items):
		return true, 0, t.finishRound(hard, done)
	case t.settled >= max(1, t.cfg.Window/8):
		return true, 0, t.link(hard, items, done)
	}
	if t.active && t.settled < len(items) {
		if parked, upTo := t.toPark(items, bytes, ended, false); len(parked) > 0 {
			done, _ = t.pending() // again: more may have been found settled
			return true, 0, t.park(hard, items, upTo, parked, done)
		}
	}
	since := time.Since(t.lastLink)
	switch {
	case t.settled > 0 && since >= linkEvery, urgent, len(done) > 0 && since >= completionsEvery:
		return true, 0, t.link(hard, items, done)
	case t.settled > 0:
		return false, linkEvery - since, nil
	case len(done) > 0:
		return false, completionsEvery - since, nil
	case t.active:
		return false, time.Second, nil // held ones: evidence may have come meanwhile
	}
	return false, idle, nil
}

// link writes that the first t.settled events of the window are settled.
func (t *tenure) link(hard context.Context, items []*item, done []completion) error {
	hit(fpBeforeLink)
	lastID := t.chain.pos.lastID
	if t.settled > 0 {
		lastID = items[t.settled-1].LogID
	}
	if len(done) > 0 {
		hit(fpBeforeComplete)
	}
	if err := t.chain.advance(hard, lastID, len(done) > 0, t.completing(done)...); err != nil {
		return err
	}
	hit(fpAfterLink)
	t.passed(t.settled)
	t.completed(done)
	return nil
}

// finishRound writes the round's last link.
func (t *tenure) finishRound(hard context.Context, done []completion) error {
	hit(fpBeforeFinish)
	r := &t.chain.pos.round
	if err := t.chain.finish(hard, t.completing(done)...); err != nil {
		return err
	}
	hit(fpAfterFinish)
	told(t.log, t.hooks.RoundDone, RoundInfo{Name: t.who.name, Round: r.n, UpperID: r.upper})
	t.passed(t.settled)
	t.active = false
	t.stopReading()
	t.sentBefore = nil
	t.window.reset()
	t.completed(done)
	t.idle.busy()
	if err := t.chain.prune(hard); err != nil {
		return err
	}
	if t.moveWaits {
		return errSteered
	}
	if t.chain.fresh > t.chain.pos.round.upper {
		return t.startRound(hard, t.chain.fresh)
	}
	return nil
}

// passed drops the first n of the window, which a committed link has passed.
func (t *tenure) passed(n int) {
	t.window.take(n)
	t.settled -= n
	t.lastLink = time.Now()
}
