package outbox

import (
	"container/heap"
	"slices"
	"time"
)

// laneKey is what order is kept by.
type laneKey struct{ topic, key string }

func keyOf(it *item) laneKey { return laneKey{it.Topic, it.Key} }

// keyQueue holds the events of one key that cannot simply flow: a failing one and
// what waits behind it, by log id. Keys that flow have none.
type keyQueue struct {
	key   laneKey
	items []*item
	due   time.Time // when its first may be sent
	busy  bool      // one of its events is in a call
	left  bool      // to the next holder
	index int       // in the heap, -1: not in it
}

// insert keeps the order of ids; an event mostly comes last. One that comes before
// all others, after a rewind, is due at once.
func (q *keyQueue) insert(it *item) {
	i := len(q.items)
	for i > 0 && q.items[i-1].LogID > it.LogID {
		i--
	}
	q.items = slices.Insert(q.items, i, it)
	if i == 0 && len(q.items) > 1 {
		q.due = time.Time{}
	}
}

func (q *keyQueue) remove(it *item) {
	if len(q.items) > 0 && q.items[0] == it { // the rule; long queues are not moved then
		q.items[0] = nil
		q.items = q.items[1:]
	} else if i := slices.Index(q.items, it); i >= 0 {
		q.items = slices.Delete(q.items, i, i+1)
	}
}

// keyQueues are those of one lane, or one handler.
type keyQueues struct {
	keys map[laneKey]*keyQueue
	due  dueHeap
}

// queue gives the queue of k, which may be new.
func (s *keyQueues) queue(k laneKey) *keyQueue {
	q := s.keys[k]
	if q == nil {
		q = &keyQueue{key: k, index: -1}
		s.keys[k] = q
	}
	return q
}

// settleQueue schedules a queue that is not busy any more, or drops an empty one.
func (s *keyQueues) settleQueue(q *keyQueue) {
	s.due.schedule(q)
	if len(q.items) == 0 && !q.busy {
		delete(s.keys, q.key)
	}
}

// put adds an event to its key's queue.
func (s *keyQueues) put(it *item) {
	q := s.queue(keyOf(it))
	q.insert(it)
	s.due.schedule(q)
}

// takeOut removes one, after which its key goes on.
func (s *keyQueues) takeOut(it *item) {
	if q := s.keys[keyOf(it)]; q != nil {
		q.remove(it)
		q.due = time.Time{}
		s.settleQueue(q)
	}
}

// tryAnew has a parked event tried from its first attempt on.
func (s *keyQueues) tryAnew(it *item) {
	q := s.queue(keyOf(it))
	it.attempts, it.retry, it.giveUp, it.replays = 0, nil, false, it.replays+1
	q.due = time.Time{}
	s.due.schedule(q)
}

// dueHeap orders the queues that may be sent from by when.
type dueHeap []*keyQueue

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }
func (h *dueHeap) Push(x any)        { q := x.(*keyQueue); q.index = len(*h); *h = append(*h, q) }
func (h *dueHeap) Pop() any {
	q := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	q.index = -1
	return q
}

// schedule puts q into the heap, or takes it out, as its state says.
func (h *dueHeap) schedule(q *keyQueue) {
	// One that is given up goes on when that is noted, or a person says so.
	ready := !q.busy && !q.left && len(q.items) > 0 && !q.items[0].giveUp
	switch {
	case ready && q.index < 0:
		heap.Push(h, q)
	case ready:
		heap.Fix(h, q.index)
	case q.index >= 0:
		heap.Remove(h, q.index)
	}
}
