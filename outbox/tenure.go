package outbox

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/postbus/postbus/internal/failpoint"
)

func hit(name string) { failpoint.Hit(name) }

// tenure is the time from one load of the position to the next error, hand-over
// or stop. All that it keeps in memory is built from the database and thrown away
// with it; only one goroutine, loop, writes to the database.
type tenure struct {
	seat
	cfg    RelayConfig
	had    bool // this Run has had a position before
	sender *sender
	health *health
	window *window
	lanes  []*lane
	seed   maphash.Seed
	reader *reader
	margin time.Duration // before the lease's end, in which nothing is sent any more
	pace   pace

	progressC chan struct{} // one signal at most: something was settled
	wakeC     <-chan struct{}
	readErrC  chan error

	dispatching sync.Mutex
	closing     bool // nothing more goes to the lanes

	mu          sync.Mutex
	completions []completion // of parked events, not yet written

	// What follows belongs to loop.
	stopReading context.CancelFunc
	settled     int // items at the front of the window known to be settled
	lastLink    time.Time
	sentRound   int64
	sentBefore  map[int64]struct{} // of sentRound, by the tenure before; read by dispatch too
}

// progress tells loop that something was settled.
func (t *tenure) progress() {
	select {
	case t.progressC <- struct{}{}:
	default:
	}
}

func (t *tenure) laneOf(key string) *lane {
	return t.lanes[maphash.String(t.seed, key)%uint64(len(t.lanes))]
}

func (t *tenure) wakeLanes() {
	for _, l := range t.lanes {
		l.wake()
	}
}

// run takes the position over and moves it until ctx is done (nil: drained), or
// hard is (the lease is lost), or an error.
func (t *tenure) run(ctx, hard context.Context) error {
	if err := t.takeOver(hard, t.cfg.StartAt, t.had); err != nil {
		return err
	}
	hit(fpTakeoverLinked)
	t.seed = maphash.MakeSeed()
	t.health = newHealth(t.log, t.wakeLanes)
	for range t.cfg.Lanes {
		t.lanes = append(t.lanes, newLane(t))
	}
	if err := t.loadParked(hard); err != nil {
		return err
	}
	for _, it := range t.parked { // they stand in their lanes again as the former holder left them
		t.laneOf(it.Key).add(it)
	}
	shared, leave := joinSharedRead(t.source)
	defer leave()
	t.reader.shared = shared
	lanesCtx, stopLanes := context.WithCancel(hard)
	var running sync.WaitGroup
	defer func() {
		if t.stopReading != nil {
			t.stopReading()
		}
		stopLanes()
		running.Wait()
	}()
	if t.sentRound != t.chain.pos.round.n {
		t.sentBefore = nil
	}
	if !t.ctl.paused {
		for _, l := range t.lanes {
			running.Go(func() { l.run(lanesCtx) })
		}
		if err := t.goOn(hard); err != nil {
			return err
		}
	}
	err := t.loop(ctx, hard)
	steers := errors.Is(err, errSteered)
	if !steers && (err != nil || ctx.Err() == nil) {
		return err
	}
	if err := t.drain(hard, &running); err != nil || !steers {
		return err
	}
	if err := t.steer(hard); err != nil {
		return err
	}
	return errSteered
}

// goOn reads what is left of the present round.
func (t *tenure) goOn(hard context.Context) error {
	r := &t.chain.pos.round
	t.pace.rate = t.ctl.rate
	t.reader.narrow(t.ctl.skipBelow, t.cfg.Types, t.ctl.types)
	if t.chain.pos.finished() {
		return nil
	}
	if r.prev.xmax == emptySnapshot.xmax { // rewound: what was put aside since is not sent from the log
		ids, err := t.parkedIDs(hard, r.prevID)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if t.sentBefore == nil {
				t.sentBefore = map[int64]struct{}{}
			}
			t.sentBefore[id] = struct{}{}
		}
	}
	t.read(hard, t.chain.pos.lastID)
	return nil
}

// loop is the relay's one writer.
func (t *tenure) loop(ctx, hard context.Context) error {
	t.idle.reset(t.cfg.PollInterval)
	for ctx.Err() == nil {
		if hard.Err() != nil {
			return context.Cause(hard)
		}
		acted, wait, err := t.step(hard)
		if err != nil {
			return err
		}
		if acted {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-hard.Done():
		case <-t.progressC:
		case <-t.wakeC:
			t.idle.signalled(commits(t.db.schema))
		case err := <-t.readErrC:
			return err
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// step does the next thing there is to do, or says how long to wait for one.
func (t *tenure) step(hard context.Context) (acted bool, wait time.Duration, err error) {
	if !t.idle.overdue() {
		acted, wait, err = t.settle(hard)
		if acted || err != nil {
			return acted, wait, err
		}
	}
	look := t.idle.in()
	if t.idle.due || look <= 0 || t.idle.overdue() {
		acted, err = t.poll(hard)
		return acted, 0, err
	}
	return false, min(wait, look), nil
}

// startRound begins a round and its reading. lastID is the sequence's position as
// last seen.
func (t *tenure) startRound(hard context.Context, lastID int64) error {
	if err := t.chain.start(hard, lastID); err != nil {
		return err
	}
	hit(fpRoundLinked)
	t.read(hard, 0)
	return nil
}

// read reads the present round above lastID and dispatches its events, ahead of
// their publishing as far as the window reaches.
func (t *tenure) read(hard context.Context, lastID int64) {
	ctx, stop := context.WithCancel(hard)
	t.active, t.stopReading, t.settled = true, stop, 0
	t.window.reset()
	r := t.chain.pos.round
	chunks := make(chan *chunk, 4)
	read := make(chan error, 1)
	go func() {
		defer close(chunks)
		read <- t.reader.read(ctx, &r, lastID, chunks)
	}()
	go func() {
		for c := range chunks {
			if t.dispatch(ctx, c.items) != nil {
				return // stopped
			}
		}
		if err := <-read; err != nil {
			if ctx.Err() == nil {
				t.readErrC <- fmt.Errorf("%s: %w", t.who, explain(t.db.schema, err))
			}
			return
		}
		t.window.end()
		t.progress()
	}()
}

// dispatch moves events into the window and from there to their lanes.
func (t *tenure) dispatch(ctx context.Context, items []*item) error {
	perLane := map[*lane][]*item{}
	for len(items) > 0 {
		allowed, err := t.pace.take(ctx, len(items))
		if err != nil {
			return err
		}
		n, err := t.window.put(ctx, items[:allowed])
		if err != nil {
			return err
		}
		t.dispatching.Lock()
		if t.closing {
			t.dispatching.Unlock()
			return context.Canceled
		}
		for _, it := range items[:n] {
			if _, sent := t.sentBefore[it.LogID]; sent {
				it.state.Store(stSettled)
				continue
			}
			l := t.laneOf(it.Key)
			perLane[l] = append(perLane[l], it)
		}
		for l, of := range perLane {
			if len(of) > 0 {
				l.push(of)
				perLane[l] = of[:0]
			}
		}
		t.dispatching.Unlock()
		items = items[n:]
	}
	return nil
}
