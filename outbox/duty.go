package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// duty is for a durable handler what a tenure is for a relay: the time from one load
// of the position to the next error or stop. It does one thing at a time.
type duty struct {
	seat
	cfg    DurableConfig
	handle DurableFunc
	had    bool // this Run has had a position before
	health *health
	reader *reader
	pace   pace
	margin time.Duration

	limitsSQL string
	keyQueues // events put aside, and what waits behind them

	wakeC       <-chan struct{}
	chunkC      <-chan *chunk
	readErrC    <-chan error // the reader's end
	stopReading context.CancelFunc
	ahead       []*item         // read, not handled
	ended       bool            // all of the round is read
	held        map[int64]*item // see loadHeld
	soloUpTo    int64           // one by one up to here: a batch with these has failed
	logsTurn    bool            // before another try of one put aside
	laterThan   time.Time       // nothing is taken from the log before
	doubted     int             // keys that the next probe of an outage passes over
	fromEnd     int             // when it has passed over all of them: the how manieth from the end is tried
	probes      int
	after       []func() // to be called, since what they are about is committed
}

func (d *Durable) newDuty(db *database, l *lease, source string, holder uuid.UUID, wakeC <-chan struct{}) *duty {
	who := owner{kindHandler, d.cfg.Name}
	log := d.cfg.Logger.With("handler", d.cfg.Name)
	t := &duty{
		seat: seat{who: who, db: db, log: log, lease: l, source: source, hooks: d.cfg.Hooks,
			chain: newChain(db, who, allSlots, holder), retry: d.cfg.Retry, policy: d.cfg.Policy,
			aside: caps{maxEvents: d.cfg.MaxParked, maxBytes: d.cfg.MaxParkedBytes}},
		cfg: d.cfg, handle: d.handle, reader: newReader(db, allSlots, source), margin: d.cfg.Lease / 10, wakeC: wakeC,
		keyQueues: keyQueues{keys: map[laneKey]*keyQueue{}}, limitsSQL: limits(d.cfg.Lease),
	}
	t.health = newHealth(log, func() {})
	t.health.ofHandler = true
	return t
}

// run takes the position over and moves it until ctx is done, or hard is (the lease
// is lost), or an error.
func (t *duty) run(ctx, hard context.Context) error {
	if err := t.takeOver(hard, t.cfg.StartAt, t.had); err != nil {
		return err
	}
	hit(fpTakeoverLinked)
	if err := t.loadParked(hard); err != nil {
		return err
	}
	t.pace.rate = t.ctl.rate
	t.reader.narrow(t.ctl.skipBelow, t.cfg.Types, t.ctl.types)
	defer func() {
		if t.stopReading != nil {
			t.stopReading()
		}
	}()
	goesOn := !t.chain.pos.finished() && !t.ctl.paused
	if goesOn && t.chain.pos.round.prev.xmax == emptySnapshot.xmax {
		if err := t.loadHeld(hard); err != nil {
			return err
		}
	}
	for _, it := range t.parked {
		if t.held[it.LogID] == nil {
			t.put(it)
		}
	}
	if goesOn {
		t.read(hard, t.chain.pos.lastID)
	}
	// The handler under way outlives ctx by the drain.
	work, stop := context.WithCancel(hard)
	defer stop()
	defer context.AfterFunc(ctx, func() { sleep(work, t.cfg.DrainTimeout); stop() })()

	t.idle.reset(t.cfg.PollInterval)
	for ctx.Err() == nil {
		if hard.Err() != nil {
			return context.Cause(hard)
		}
		acted, wait, err := t.step(hard, work)
		switch {
		case err != nil && ctx.Err() != nil && work.Err() != nil && hard.Err() == nil:
			t.log.Warn("the handler outlasted the drain limit: its event is left to the next holder", "limit", t.cfg.DrainTimeout)
			return nil
		case err != nil:
			return err
		case !acted:
			t.rest(ctx, hard, wait)
		}
	}
	return nil
}

// rest waits for something to do.
func (t *duty) rest(ctx, hard context.Context, wait time.Duration) {
	chunkC := t.chunkC
	if len(t.ahead) > 0 || t.ended {
		chunkC = nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-hard.Done():
	case <-t.wakeC:
		t.idle.signalled(commits(t.db.schema))
	case c, ok := <-chunkC:
		t.received(c, ok)
	case <-timer.C:
	}
}

// step does the next thing there is to do, or says how long to wait for one.
func (t *duty) step(hard, work context.Context) (acted bool, wait time.Duration, err error) {
	if t.lease.left() <= t.margin {
		return false, 10 * time.Millisecond, nil
	}
	if t.idle.due || t.idle.in() <= 0 || t.idle.overdue() {
		if acted, err = t.poll(hard); acted || err != nil {
			return acted, 0, err
		}
	}
	wait = min(idle, t.idle.in())
	if t.ctl.paused {
		return false, wait, nil
	}
	now := time.Now()
	adm := t.health.admit(now)
	if adm.wait > 0 {
		return false, min(wait, adm.wait), nil
	}
	acted, more, err := t.next(hard, work, now, adm)
	if adm.probe && !acted {
		t.health.unused()
	}
	return acted, min(wait, more), err
}

// next handles what is due: an event that was put aside, or the next ones of the
// log. If both can go on they take turns: a long queue that is freed, or one that
// fails slowly, does not hold up other keys, nor does a log that cannot go on keep
// those put aside from being tried.
func (t *duty) next(hard, work context.Context, now time.Time, adm admission) (acted bool, wait time.Duration, err error) {
	wait = idle
	var due *keyQueue
	if len(t.due) > 0 {
		if in := t.due[0].due.Sub(now); in > 0 {
			wait = in
		} else {
			due = t.due[0]
		}
	}
	if len(t.ahead) == 0 && !t.ended && t.active {
		select {
		case c, ok := <-t.chunkC:
			t.received(c, ok)
		default:
		}
	}
	// A probe tells more if its event has not failed yet; but not for ever.
	prefersLog := adm.fresh && t.probes%4 != 3
	if adm.probe {
		t.probes++
	}
	if due == nil || t.logsTurn || prefersLog {
		t.logsTurn = false
		acted, more, err := t.goOn(hard, work, now, adm)
		if acted || err != nil || due == nil {
			return acted, min(wait, more), err
		}
	}
	t.logsTurn = true
	return true, 0, t.again(hard, work, due)
}

// goOn handles the next events of the log, or ends the round.
func (t *duty) goOn(hard, work context.Context, now time.Time, adm admission) (acted bool, wait time.Duration, err error) {
	switch {
	case len(t.ahead) > 0 && now.Before(t.laterThan):
		return false, t.laterThan.Sub(now), nil
	case len(t.ahead) > 0:
		return t.handleAhead(hard, work, now, adm)
	case t.ended && t.active:
		if err := <-t.readErrC; err != nil {
			return false, 0, fmt.Errorf("%s: %w", t.who, explain(t.db.schema, err))
		}
		if adm.probe {
			t.health.unused() // it takes no event to end a round
		}
		return true, 0, t.finishRound(hard)
	}
	return false, idle, nil
}

// poll looks for what is new and for what is asked.
func (t *duty) poll(hard context.Context) (acted bool, err error) {
	if begun, err := t.beginAtOnce(hard); begun || err != nil {
		if begun {
			t.read(hard, 0)
		}
		return begun, err
	}
	fresh, asked, err := t.look(hard)
	if err != nil {
		return false, err
	}
	if asked {
		if acted, err = t.carryOut(hard); err != nil {
			return false, err
		}
	}
	if fresh {
		return true, t.startRound(hard, t.idle.lastID)
	}
	t.idle.looked()
	return acted, nil
}

func (t *duty) startRound(hard context.Context, lastID int64) error {
	if err := t.chain.start(hard, lastID); err != nil {
		return err
	}
	hit(fpRoundLinked)
	t.read(hard, 0)
	return nil
}

// read reads the present round above lastID, a little ahead.
func (t *duty) read(hard context.Context, lastID int64) {
	ctx, stop := context.WithCancel(hard)
	chunks, end := make(chan *chunk, 1), make(chan error, 1)
	t.active, t.ended, t.stopReading, t.ahead = true, false, stop, nil
	t.chunkC, t.readErrC = chunks, end
	r := t.chain.pos.round
	go func() {
		end <- t.reader.read(ctx, &r, lastID, chunks)
		close(chunks)
	}()
}

func (t *duty) received(c *chunk, ok bool) {
	if !ok {
		t.ended = true
		return
	}
	t.ahead = c.items
}

func (t *duty) finishRound(hard context.Context) error {
	hit(fpBeforeFinish)
	r := &t.chain.pos.round
	if err := t.chain.finish(hard); err != nil {
		return err
	}
	hit(fpAfterFinish)
	told(t.log, t.hooks.RoundDone, RoundInfo{Name: t.who.name, Round: r.n, UpperID: r.upper})
	t.stopReading()
	t.active = false
	t.releaseAll()
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

// carryOut does what is asked. Between two steps nothing is in flight.
func (t *duty) carryOut(hard context.Context) (acted bool, err error) {
	requests, err := t.requests(hard)
	if err != nil || len(requests) == 0 {
		return false, err
	}
	if t.steerable(requests) {
		if err := t.steer(hard); err != nil {
			return false, err
		}
		return false, errSteered
	}
	p, err := t.plan(hard, ofParked(requests))
	if err != nil || len(p.requests) == 0 {
		return false, err
	}
	hit(fpBeforeRequest)
	if err := t.chain.advance(hard, t.chain.pos.lastID, true, t.carrying(p)...); err != nil {
		return false, err
	}
	hit(fpAfterRequest)
	for _, it := range p.frozen {
		t.dropParked(it)
		if t.holds(it.LogID) {
			t.held[it.LogID] = nil
			continue
		}
		t.takeOut(it)
	}
	t.aside.remove(p.gone...)
	for _, fresh := range p.stillReplayed() {
		if it := t.parked[fresh.LogID]; it != nil && !t.holds(it.LogID) { // BlockKey: it stands there, at the head of its key
			t.tryAnew(it)
			continue
		} else if it != nil {
			t.dropParked(it) // for the fresh one
		}
		fresh.attempts, fresh.retry, fresh.giveUp, fresh.replays = 0, nil, false, fresh.replays+1
		if err := t.markReplayed(fresh); err != nil {
			return true, err
		}
		t.keepParked(fresh)
		if t.holds(fresh.LogID) {
			t.held[fresh.LogID] = fresh
			continue
		}
		t.put(fresh)
	}
	return true, nil
}

// settledOrStop tells the two ends of an attempt apart that say nothing of the event.
func settledOrStop(work context.Context, err error) bool {
	var h *handlerError
	return err == nil || work.Err() != nil || !errors.As(err, &h)
}
