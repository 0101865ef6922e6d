package inflight

import (
	"container/heap"
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Withdraw takes out of the room what match says and has not been handed over:
// it is reported as GivenBack. What is with a handler is left to it, and is not
// handed over again if it is nacked, but GivenBack too. match is called with the
// room's lock held and must not call the room.
func (r *Room[T]) Withdraw(match func(token T) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.withdraw(match, false, nil)
}

// Lose takes out of the room what match says, because it is not ours any more:
// what has not been handed over is dropped, the contexts of what is with a
// handler are cancelled with cause, and whatever the handler does then is not
// heard. Nothing of it is reported, neither what was settled and has not been
// taken yet. The key of a handler that still runs waits for it.
// It returns how many handlers there are whose message was lost. match is called
// with the room's lock held and must not call the room.
func (r *Room[T]) Lose(match func(token T) bool, cause error) (handlers int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rest := r.results[:0]
	for _, res := range r.results {
		if !match(res.Token) {
			rest = append(rest, res)
		}
	}
	clear(r.results[len(rest):])
	r.results = rest
	return r.withdraw(match, true, cause)
}

func (r *Room[T]) withdraw(match func(T) bool, lose bool, cause error) (handlers int) {
	inHand := false
	for d := r.all.first; d != nil; {
		here := d
		d = d.after
		if !match(here.Token) {
			continue
		}
		switch was := here.state; was {
		case taken, handed:
			inHand = true
			here.final = true
			if lose {
				here.lost = true
				r.forget(here)
				here.ctx.end(cause)
			}
		case waiting, ready, pausing:
			if was == pausing {
				heap.Remove(&r.paused, here.place)
			}
			here.state = over
			r.forget(here)
			if !lose {
				r.report(here, GivenBack)
			}
			if was == waiting {
				here.lane = nil // its head keeps the lane
			} else {
				r.pass(here)
			}
		}
	}
	if inHand {
		r.recall()
	}
	for _, d := range r.flying {
		if d.state == handed && d.lost && match(d.Token) && !settled(d.msg) {
			handlers++
		}
	}
	r.wake()
	r.notify()
	return handlers
}

// recall takes back from the channel what nobody has taken and must not be handed over.
func (r *Room[T]) recall() {
	r.cfg.Outlet.mu.Lock()
	defer r.cfg.Outlet.mu.Unlock()
	var inside []*message.Message
	for more := true; more; {
		select {
		case m := <-r.out:
			inside = append(inside, m)
		default:
			more = false
		}
	}
	if len(inside) == 0 {
		return
	}
	of := make(map[*message.Message]*delivery[T], len(r.flying))
	for _, d := range r.flying {
		if d.state == handed {
			of[d.msg] = d
		}
	}
	for _, m := range inside {
		if d := of[m]; d != nil && (d.lost || d.final) {
			d.attempt--
			m.Nack() // for its attendant
		} else {
			r.out <- m // there is room: all in flight fit, those of other rooms too
		}
	}
}

// Await blocks until nothing that match says is with a handler: lost ones count
// too. The error is the cause of ctx's end.
func (r *Room[T]) Await(ctx context.Context, match func(token T) bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		busy := false
		for _, d := range r.flying {
			if match(d.Token) {
				busy = true
				break
			}
		}
		if !busy {
			return nil
		}
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
}
