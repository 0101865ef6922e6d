package outbox

import (
	"context"
	"sync"
	"time"
)

// drain lets the calls under way come back, closes the gaps between what was sent,
// notes it, and leaves the rest to the next holder: nothing is sent twice, unless
// the broker is down, when nothing is parked and gaps stay open.
func (t *tenure) drain(hard context.Context, running *sync.WaitGroup) error {
	if t.stopReading != nil {
		t.stopReading()
	}
	t.stopSending()
	back := make(chan struct{})
	go func() { running.Wait(); close(back) }()
	limit := time.NewTimer(t.cfg.DrainTimeout)
	defer limit.Stop()
	select {
	case <-back:
	case <-limit.C:
		t.log.Warn("calls to the publisher outlast the drain limit: their events may be published again", "limit", t.cfg.DrainTimeout)
	case <-hard.Done():
		return context.Cause(hard)
	}
	_, err := t.flush(hard)
	hit(fpBeforeHandover)
	return err
}

// stopSending has the lanes send nothing above the last event that any of them has
// taken. Up to there they go on: lanes differ in pace, and the position cannot pass
// what was sent by one above what another has not sent yet.
func (t *tenure) stopSending() {
	t.dispatching.Lock()
	t.closing = true
	t.dispatching.Unlock()
	var last int64
	for _, l := range t.lanes {
		l.mu.Lock()
		last = max(last, l.highest)
	}
	for _, l := range t.lanes {
		l.draining, l.upTo = true, last
		l.mu.Unlock()
		l.wake()
	}
}

// flush writes the last links before a hand-over; failing events with sent ones
// behind them are put aside. acted is false if there was nothing to write.
func (t *tenure) flush(hard context.Context) (acted bool, err error) {
	for {
		items, bytes, _ := t.window.view()
		for t.settled < len(items) && items[t.settled].state.Load() == stSettled {
			t.settled++
		}
		done, _ := t.pending()
		sent := len(items)
		for sent > t.settled && items[sent-1].state.Load() != stSettled {
			sent--
		}
		if sent > t.settled {
			if chosen, upTo := t.toPark(items[:sent], bytes, false, true); len(chosen) > 0 {
				if err := t.park(hard, items, upTo, chosen, done); err != nil {
					return true, err
				}
				acted = true
				continue
			}
		}
		if t.settled == 0 && len(done) == 0 {
			return acted, nil
		}
		return true, t.link(hard, items, done)
	}
}
