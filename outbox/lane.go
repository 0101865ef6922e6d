package outbox

import (
	"context"
	"slices"
	"sync"
	"time"
)

// lane publishes the events of its share of the keys, in order per key, one call
// at a time; lanes publish side by side. Events flow through fifo; those of a key
// with a failing event stand in a queue of their own, so that a failing event
// stops its own key only.
type lane struct {
	t      *tenure
	caller *caller
	wakeC  chan struct{} // one signal at most

	mu   sync.Mutex
	fifo []*item
	keyQueues
	inUse map[laneKey]struct{} // keys of the call being put together, if each may appear once only
	batch []*item
	msgs  []*Message

	highest  int64 // log id of what was taken from fifo last, of all rounds
	draining bool  // what lies above upTo is left to the next holder, and what fails
	upTo     int64
}

func newLane(t *tenure) *lane {
	return &lane{t: t, wakeC: make(chan struct{}, 1), keyQueues: keyQueues{keys: map[laneKey]*keyQueue{}}, inUse: map[laneKey]struct{}{}}
}

// push takes over dispatched events.
func (l *lane) push(items []*item) {
	l.mu.Lock()
	l.fifo = append(l.fifo, items...)
	l.mu.Unlock()
	l.wake()
}

// add puts a parked event into its key's queue.
func (l *lane) add(it *item) {
	l.mu.Lock()
	l.put(it)
	l.mu.Unlock()
	l.wake()
}

// replace puts the parked copy of an event in its place.
func (l *lane) replace(old, parked *item) {
	l.mu.Lock()
	q := l.queue(keyOf(old))
	q.remove(old)
	q.insert(parked)
	l.mu.Unlock()
}

// remove takes an event out, after which its key goes on.
func (l *lane) remove(it *item) {
	l.mu.Lock()
	l.takeOut(it)
	l.mu.Unlock()
	l.wake()
}

// resume tries a parked event again from its first attempt on.
func (l *lane) resume(it *item) {
	l.mu.Lock()
	l.tryAnew(it)
	l.mu.Unlock()
	l.wake()
}

func (l *lane) wake() {
	select {
	case l.wakeC <- struct{}{}:
	default:
	}
}

// run publishes until the tenure drains or ends.
func (l *lane) run(ctx context.Context) {
	l.caller = l.t.sender.newCaller()
	defer func() { l.caller.close() }()
	for ctx.Err() == nil {
		wait, over := l.once(ctx)
		if over {
			return
		}
		if wait <= 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-l.wakeC:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// idle is how long a lane with nothing to do sleeps if nobody wakes it.
const idle = time.Minute

// once makes at most one call; it gives how long to wait before the next, or that
// there is none to come: all is sent that a draining lane has to.
func (l *lane) once(ctx context.Context) (wait time.Duration, over bool) {
	// The lease is looked at immediately before each call: a paused process that
	// wakes up behind its end sends nothing but what was already on its way.
	within := min(l.t.cfg.PublishTimeout, l.t.lease.left()-l.t.margin)
	if within <= 0 {
		return 10 * time.Millisecond, false
	}
	now := time.Now()
	l.mu.Lock()
	over = l.draining
	if wait := l.nothingUntil(now); wait > 0 {
		over = over && !l.owes()
		l.mu.Unlock()
		return wait, over
	}
	adm := l.t.health.admit(now)
	if adm.wait > 0 {
		l.mu.Unlock()
		return adm.wait, over
	}
	if over && adm.probe {
		l.mu.Unlock()
		l.t.health.unused()
		return 0, true // the broker is down: the next holder finds out when it is back
	}
	batch := l.collect(now, adm)
	l.mu.Unlock()
	if len(batch) == 0 {
		if adm.probe {
			l.t.health.unused()
		}
		return time.Millisecond, false
	}
	return l.publish(ctx, within, batch, adm.probe), false
}

func (l *lane) nothingUntil(now time.Time) time.Duration {
	if len(l.fifo) > 0 && l.mayGo(l.fifo[0]) {
		return 0
	}
	if len(l.due) == 0 {
		return idle
	}
	return l.due[0].due.Sub(now)
}

// owes tells whether a draining lane still has to send something that is not due yet.
func (l *lane) owes() bool {
	return slices.ContainsFunc(l.due, func(q *keyQueue) bool { return !q.items[0].giveUp && l.mayGo(q.items[0]) })
}

// mayGo: a draining lane sends no more than it must.
func (l *lane) mayGo(it *item) bool {
	return !l.draining || it.LogID <= l.upTo && it.retry == nil && !it.parked
}

// collect chooses the next call's events: first of keys that are due, then of
// those that flow.
func (l *lane) collect(now time.Time, adm admission) []*item {
	c := l.t.sender.contract
	n, bytes := c.MaxBatch, c.MaxBatchBytes
	if adm.probe {
		n = 1
	}
	l.batch = l.batch[:0]
	clear(l.inUse)
	if !adm.fresh || len(l.fifo) == 0 {
		l.collectDue(now, n, &bytes)
	}
	i := 0
	for ; i < len(l.fifo) && len(l.batch) < n && bytes > 0; i++ {
		it := l.fifo[i]
		if !l.mayGo(it) {
			break
		}
		l.highest = max(l.highest, it.LogID)
		if len(l.keys) > 0 {
			if q := l.keys[keyOf(it)]; q != nil {
				it.state.Store(stHeld)
				q.insert(it)
				l.due.schedule(q)
				l.t.progress()
				continue
			}
		}
		if !c.StopsKeyAtFirstFailure && n > 1 {
			k := keyOf(it)
			if _, used := l.inUse[k]; used {
				q := l.queue(k)
				q.busy = true
				it.state.Store(stHeld)
				q.insert(it)
				continue
			}
			l.inUse[k] = struct{}{}
		}
		bytes -= it.bytes
		l.batch = append(l.batch, it)
	}
	if l.fifo = l.fifo[i:]; len(l.fifo) == 0 {
		l.fifo = nil
	}
	return l.batch
}

func (l *lane) collectDue(now time.Time, n int, bytes *int) {
	for len(l.due) > 0 && len(l.batch) < n && *bytes > 0 && !l.due[0].due.After(now) {
		q := l.due[0]
		q.busy = true
		l.due.schedule(q) // out of the heap
		took, again := 0, 10*time.Millisecond
		for _, it := range q.items {
			if it.giveUp || !l.mayGo(it) {
				break // a person must decide on it, or the next holder goes on
			}
			if l.t.sender.crowded() && it.hangs() {
				again = 100 * time.Millisecond
				break
			}
			if !it.state.CompareAndSwap(stHeld, stSending) && !it.state.CompareAndSwap(stParked, stSending) {
				break // being written: its turn comes when that is done
			}
			*bytes -= it.bytes
			l.batch = append(l.batch, it)
			took++
			// A retry goes alone; what waits behind it follows when it has got through.
			if it.retry != nil || !l.t.sender.contract.StopsKeyAtFirstFailure || len(l.batch) >= n || *bytes <= 0 {
				break
			}
		}
		if took == 0 {
			q.busy, q.due = false, now.Add(again)
			q.left = q.left || l.draining
			l.due.schedule(q)
			continue
		}
		l.inUse[q.key] = struct{}{}
	}
}

// publish sends the batch and settles what came of it; it gives how long to wait
// before the next.
func (l *lane) publish(ctx context.Context, within time.Duration, batch []*item, probe bool) time.Duration {
	payloads, err := l.t.loadPayloads(ctx, batch)
	if err != nil {
		l.settle(batch, make([]Result, len(batch)), probe)
		return 100 * time.Millisecond // loop will hear of the database's trouble itself
	}
	l.msgs = l.msgs[:0]
	for _, it := range batch {
		m := &it.Message
		if it.parked {
			loaded := it.Message // of this call only: one left behind reads on in its own
			loaded.Payload = payloads[it.LogID]
			m = &loaded
		}
		l.msgs = append(l.msgs, m)
	}
	hit(fpBeforePublish)
	began := time.Now()
	results, left := l.caller.send(ctx, within, l.msgs)
	if left != nil {
		l.msgs = nil // the call that hangs still has them
		for _, it := range batch {
			it.left = left
		}
	}
	hit(fpAfterPublish)
	l.tellPublished(batch, results, time.Since(began))
	if !l.settle(batch, results, probe) {
		return l.t.cfg.Retry.Initial // nothing was sent at all: not at once again
	}
	return 0
}

func (l *lane) tellPublished(batch []*item, results []Result, took time.Duration) {
	if l.t.hooks.Published == nil {
		return
	}
	info := PublishedInfo{Name: l.t.who.name, Took: took}
	for i, r := range results {
		switch r.Status {
		case Done:
			info.Events++
			info.Bytes += batch[i].bytes
		case NotAttempted:
		default:
			info.Failed++
		}
	}
	told(l.t.log, l.t.hooks.Published, info)
}
