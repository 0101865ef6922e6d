package inflight

import (
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

const (
	// quick is how soon an ack comes after which an attendant takes more messages at once.
	quick = 100 * time.Microsecond
	// patience is how long an attendant waits for the oldest message of its batch
	// before it shares out the others.
	patience = 250 * time.Microsecond
)

// wake sees to it that somebody looks after the work there is. One is woken at
// a time; he wakes the next if there is more than he takes.
func (r *Room[T]) wake() {
	if r.waking || len(r.unattended) == 0 && (len(r.flying) == r.cfg.MaxInFlight || r.eligible() == nil) {
		return
	}
	switch {
	case r.idle > 0:
		r.waking = true
		r.work.Signal()
	case r.attendants < r.cfg.MaxInFlight:
		r.waking = true
		r.attendants++
		go (&attendant[T]{room: r}).run()
	}
}

// An attendant hands messages over and waits for what becomes of them.
type attendant[T any] struct {
	room  *Room[T]
	mine  []*delivery[T] // handed over
	taken []*delivery[T] // to be handed over
	done  []*delivery[T] // settled by their handlers: the first are acked
	timer *time.Timer
	quick bool // the last ack came quickly
	slow  bool // the oldest takes its time: each message needs an attendant of its own
	stuck bool // the oldest takes longer than others of the batch: it needs one
}

func (a *attendant[T]) run() {
	r := a.room
	r.mu.Lock()
	r.waking = false
	for {
		a.fill()
		if len(a.mine)+len(a.taken) == 0 {
			if r.leaving {
				break
			}
			r.idle++
			r.work.Wait()
			r.idle--
			r.waking = false
			continue
		}
		r.wake()
		if len(a.taken) > 0 {
			r.mu.Unlock()
			for _, d := range a.taken {
				d.msg = r.cfg.Build(d.Token, d.attempt)
				d.msg.SetContext(d.ctx)
			}
			r.mu.Lock()
			a.handOver()
		}
		if len(a.mine) == 0 {
			continue
		}
		r.mu.Unlock()
		gone := !a.await()
		r.mu.Lock()
		if gone {
			break
		}
		a.settle()
	}
	r.attendants--
	r.moved.Broadcast()
	r.mu.Unlock()
}

// fill takes what is to be handed over, or a message that nobody waits for.
func (a *attendant[T]) fill() {
	r := a.room
	if n := len(r.unattended); n > 0 && len(a.mine) == 0 {
		a.mine = append(a.mine, r.unattended[n-1])
		r.unattended[n-1] = nil
		r.unattended = r.unattended[:n-1]
		return
	}
	for len(a.mine)+len(a.taken) < r.batch && len(r.flying) < r.cfg.MaxInFlight && !r.closing {
		q := r.eligible()
		if q == nil {
			return
		}
		d := q.pop()
		d.state = taken
		d.attempt++
		d.ctx = &d.first
		if d.attempt > 1 {
			d.ctx = new(messageContext)
		}
		d.ctx.base, d.ctx.ended = r.base, r.ended
		d.slot = len(r.flying)
		r.flying = append(r.flying, d)
		a.taken = append(a.taken, d)
	}
}

// handOver puts the messages into the channel, which has room for them.
func (a *attendant[T]) handOver() {
	r := a.room
	for i, d := range a.taken {
		a.taken[i] = nil
		if d.lost || d.final { // meanwhile
			d.attempt--
			r.land(d)
			r.settle(d, false)
			continue
		}
		d.state = handed
		a.mine = append(a.mine, d)
		r.out <- d.msg
	}
	a.taken = a.taken[:0]
	r.notify()
}

// await waits until one or more of mine are settled, and moves them to done; or
// until the oldest has taken too long. It returns false when the room is done
// with waiting.
func (a *attendant[T]) await() bool {
	for !a.sweep() {
		oldest := a.mine[0].msg
		if len(a.mine) == 1 {
			since := time.Now()
			select {
			case <-oldest.Acked():
			case <-oldest.Nacked():
			case <-a.room.abandoned:
				return false
			}
			a.quick = time.Since(since) < quick
			continue
		}
		if a.timer == nil {
			a.timer = time.NewTimer(patience)
		} else {
			a.timer.Reset(patience)
		}
		select {
		case <-oldest.Acked():
			a.quick = true
		case <-oldest.Nacked():
		case <-a.timer.C:
			// Handlers are slow if they have taken all there is; else it is the consumer
			// that is behind, and the oldest one is in the way only if others are done.
			a.slow = len(a.room.out) == 0
			a.stuck = a.sweep() && !a.slow && len(a.mine) > 0 && a.mine[0].msg == oldest
			if a.slow || a.stuck {
				return true
			}
		case <-a.room.abandoned:
			return false
		}
		a.timer.Stop()
	}
	return true
}

// sweep moves to done what is settled by now.
func (a *attendant[T]) sweep() bool {
	if len(a.mine) == 0 {
		return len(a.done) > 0
	}
	rest := a.mine[:0]
	for _, d := range a.mine {
		if settled(d.msg) {
			a.done = append(a.done, d)
		} else {
			rest = append(rest, d)
		}
	}
	clear(a.mine[len(rest):])
	a.mine = rest
	return len(a.done) > 0
}

func settled(m *message.Message) bool { return isClosed(m.Acked()) || isClosed(m.Nacked()) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// settle takes what is done out of flight, and learns from how long it took.
func (a *attendant[T]) settle() {
	r := a.room
	for i, d := range a.done {
		a.done[i] = nil
		r.land(d)
		r.settle(d, isClosed(d.msg.Acked()))
	}
	a.done = a.done[:0]
	switch {
	case a.slow:
		r.batch = 1
		if len(a.mine) > 1 {
			r.unattended = append(r.unattended, a.mine[1:]...)
			clear(a.mine[1:])
			a.mine = a.mine[:1]
		}
	case a.stuck:
		r.unattended = append(r.unattended, a.mine[0])
		a.mine = slices.Delete(a.mine, 0, 1)
	case a.quick:
		r.batch = min(2*r.batch, r.cfg.MaxInFlight)
	}
	a.quick, a.slow, a.stuck = false, false, false
	r.notify()
}

// land takes d out of flight.
func (r *Room[T]) land(d *delivery[T]) {
	last := len(r.flying) - 1
	r.flying[d.slot] = r.flying[last]
	r.flying[d.slot].slot = d.slot
	r.flying[last] = nil
	r.flying = r.flying[:last]
	d.ctx.end(nil)
}

// settle says what becomes of d, which has left its handler or has not got there.
func (r *Room[T]) settle(d *delivery[T], acked bool) {
	if d.lost {
		d.state = over
		r.pass(d)
		return
	}
	if acked {
		r.leave(d, Acked)
		return
	}
	verdict := GiveBack
	if !d.final {
		verdict = Retry
		if r.cfg.Nacked != nil {
			verdict = r.cfg.Nacked(d.Token, d.attempt)
		}
	}
	switch verdict {
	case GiveBack:
		r.leave(d, GivenBack)
	case GiveBackKey:
		l := d.lane
		rest := queue[T]{}
		if l != nil {
			rest, l.waiting = l.waiting, rest
		}
		r.leave(d, GivenBack)
		for rest.head() != nil {
			e := rest.pop()
			e.lane = nil
			r.leave(e, GivenBack)
		}
	default:
		r.pause(d)
	}
}

// leave takes d off the books and reports it.
func (r *Room[T]) leave(d *delivery[T], o Outcome) {
	d.state = over
	r.forget(d)
	r.report(d, o)
	r.pass(d)
}
