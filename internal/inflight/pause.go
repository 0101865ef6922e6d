package inflight

import (
	"container/heap"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// pauses are the nacked deliveries, by the time when they are due. One timer
// serves them all.
type pauses[T any] struct {
	heap  []*delivery[T]
	epoch time.Time
	timer *time.Timer
}

func (p *pauses[T]) Len() int           { return len(p.heap) }
func (p *pauses[T]) Less(i, j int) bool { return p.heap[i].due < p.heap[j].due }
func (p *pauses[T]) Swap(i, j int) {
	p.heap[i], p.heap[j] = p.heap[j], p.heap[i]
	p.heap[i].place, p.heap[j].place = i, j
}
func (p *pauses[T]) Push(x any) {
	d := x.(*delivery[T])
	d.place = len(p.heap)
	p.heap = append(p.heap, d)
}
func (p *pauses[T]) Pop() any {
	last := len(p.heap) - 1
	d := p.heap[last]
	p.heap[last] = nil
	p.heap = p.heap[:last]
	return d
}

// pause keeps d, and with it its key, for longer each time.
func (r *Room[T]) pause(d *delivery[T]) {
	if d.pauses == nil {
		d.pauses = &backoff.ExponentialBackOff{InitialInterval: r.cfg.NackDelay, RandomizationFactor: 0.2,
			Multiplier: 2, MaxInterval: r.cfg.MaxNackDelay}
	}
	p := &r.paused
	if p.timer == nil {
		p.epoch = time.Now()
		p.timer = time.AfterFunc(time.Hour, r.resume)
	}
	d.state = pausing
	d.due = int64(time.Since(p.epoch) + d.pauses.NextBackOff())
	heap.Push(p, d)
	if d.place == 0 {
		p.timer.Reset(time.Duration(d.due) - time.Since(p.epoch))
	}
}

// resume hands over again what is due.
func (r *Room[T]) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &r.paused
	for len(p.heap) > 0 {
		rest := time.Duration(p.heap[0].due) - time.Since(p.epoch)
		if rest > 0 {
			p.timer.Reset(rest)
			break
		}
		d := heap.Pop(p).(*delivery[T])
		d.state = ready
		r.next.push(d)
	}
	r.wake()
}
