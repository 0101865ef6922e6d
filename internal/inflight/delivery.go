package inflight

import (
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
)

type state uint8

const (
	waiting state = iota // behind another one of its lane
	ready                // in one of the queues
	taken                // an attendant is building its message
	handed               // in the channel or with a handler
	pausing              // nacked, and to come again
	over                 // settled or lost; a queue that still has it passes it by
)

// delivery is a Delivery in the room. All fields are guarded by the room's
// lock, except for what its attendant needs while it is handed over.
type delivery[T any] struct {
	Delivery[T]
	seq   uint64
	state state

	lost  bool // its outcome does not matter any more
	final bool // not to be handed over again

	attempt int
	msg     *message.Message // while handed
	ctx     *messageContext
	first   messageContext // ctx of the first attempt
	slot    int            // in Room.flying

	lane          *lane[T]     // nil without a key
	link          *delivery[T] // next one of its lane or queue
	before, after *delivery[T] // in Room.all
	pauses        *backoff.ExponentialBackOff
	due           int64 // when a pause is over, in nanoseconds since the room's epoch
	place         int   // in pauses.heap
}

// queue is first in, first out, linked by delivery.link.
type queue[T any] struct{ first, last *delivery[T] }

func (q *queue[T]) push(d *delivery[T]) {
	d.link = nil
	if q.last == nil {
		q.first = d
	} else {
		q.last.link = d
	}
	q.last = d
}

// head is the first one that is not over; those are dropped.
func (q *queue[T]) head() *delivery[T] {
	for q.first != nil && q.first.state == over {
		q.pop()
	}
	return q.first
}

func (q *queue[T]) pop() *delivery[T] {
	d := q.first
	q.first, d.link = d.link, nil
	if q.first == nil {
		q.last = nil
	}
	return d
}

// list is doubly linked, by delivery.before and after.
type list[T any] struct{ first, last *delivery[T] }

func (l *list[T]) push(d *delivery[T]) {
	d.before = l.last
	if l.last == nil {
		l.first = d
	} else {
		l.last.after = d
	}
	l.last = d
}

func (l *list[T]) remove(d *delivery[T]) {
	if d.before == nil {
		l.first = d.after
	} else {
		d.before.after = d.after
	}
	if d.after == nil {
		l.last = d.before
	} else {
		d.after.before = d.before
	}
	d.before, d.after = nil, nil
}

// lane is a key in the room: one delivery of it is ready, handed over or
// pausing, and the others wait.
type lane[T any] struct {
	key     string
	waiting queue[T]
	spare   *lane[T]
}

// pass gives the lane of d, which is over or has left it, to the next one.
func (r *Room[T]) pass(d *delivery[T]) {
	l := d.lane
	if l == nil {
		return
	}
	d.lane = nil
	if next := l.waiting.head(); next != nil {
		l.waiting.pop()
		next.state = ready
		r.next.push(next)
		return
	}
	delete(r.lanes, l.key)
	*l = lane[T]{spare: r.spare}
	r.spare = l
}

// join puts d into its lane, at the end, and into the queue if it is the first there.
func (r *Room[T]) join(d *delivery[T]) {
	if d.Key != "" {
		if l := r.lanes[d.Key]; l != nil {
			d.lane = l
			l.waiting.push(d)
			return
		}
		l := r.spare
		if l == nil {
			l = new(lane[T])
		} else {
			r.spare, l.spare = l.spare, nil
		}
		l.key, d.lane = d.Key, l
		r.lanes[d.Key] = l
	}
	d.state = ready
	r.fresh.push(d)
}

// eligible is the one to be handed over next, or nil: by and large the oldest.
// Both queues are nearly in order: fresh in the order of offering, next in that of
// settling.
func (r *Room[T]) eligible() *queue[T] {
	f, n := r.fresh.head(), r.next.head()
	switch {
	case n == nil && f == nil:
		return nil
	case n == nil || f != nil && f.seq < n.seq:
		return &r.fresh
	}
	return &r.next
}

// forget takes d off the books: it is settled or lost.
func (r *Room[T]) forget(d *delivery[T]) {
	r.all.remove(d)
	r.count--
	r.bytes -= d.Size
}
