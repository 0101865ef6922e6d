package inflight

import (
	"context"
	"time"
)

// Close hands over nothing more, reports as GivenBack what was not handed over,
// and waits for the handlers: what they ack or nack is reported still. Those that
// take longer than CloseTimeout have their contexts cancelled, and CloseGrace
// later they are given up. Then the channels are closed. It returns the tokens of
// what was given up, whose outcome is never reported. Meanwhile somebody else has to Take,
// and to keep fresh at the broker what is in flight. May be called more than
// once, by several; each returns at the end, with the same.
func (r *Room[T]) Close() (abandoned []T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		for !r.drained {
			_ = r.wait(context.Background())
		}
		return r.left
	}
	r.closing = true
	r.withdraw(func(T) bool { return true }, false, nil)

	if !r.landed(r.cfg.CloseTimeout) {
		for _, d := range r.flying {
			d.ctx.end(r.cfg.CloseCause)
		}
		if !r.landed(r.cfg.CloseGrace) {
			for _, d := range r.flying {
				if !d.lost {
					d.lost = true
					r.forget(d)
					r.left = append(r.left, d.Token)
				}
			}
		}
	}
	r.leaving = true
	close(r.abandoned)
	r.work.Broadcast()
	for r.attendants > 0 {
		_ = r.wait(context.Background())
	}
	if r.paused.timer != nil {
		r.paused.timer.Stop()
	}
	r.drained = true
	if r.ownOut {
		close(r.out)
	}
	close(r.changed)
	r.moved.Broadcast()
	return r.left
}

// landed waits until nothing is in flight, and says whether that came in time.
func (r *Room[T]) landed(within time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for len(r.flying) > 0 {
		if r.wait(ctx) != nil {
			return false
		}
	}
	return true
}
