package outbox

import (
	"context"
	"time"
)

// pace keeps a stream to a number of events a second. Unused time is not saved
// up, but for a twentieth of a second.
type pace struct {
	rate float64 // 0: no limit
	next time.Time
}

// try says how many of n events may pass now, or, if none, after how long to ask
// again. Those it allows count as passed.
func (p *pace) try(n int, now time.Time) (allowed int, wait time.Duration) {
	if p.rate <= 0 || n == 0 {
		return n, 0
	}
	const slack = 50 * time.Millisecond
	if earliest := now.Add(-slack); p.next.Before(earliest) {
		p.next = earliest
	}
	if wait := p.next.Sub(now); wait > 0 {
		return 0, wait
	}
	allowed = min(n, max(1, int(now.Sub(p.next).Seconds()*p.rate)))
	p.next = p.next.Add(time.Duration(float64(allowed) / p.rate * float64(time.Second)))
	return allowed, 0
}

// take waits until at least one of n events may pass, and says how many may.
func (p *pace) take(ctx context.Context, n int) (int, error) {
	for {
		allowed, wait := p.try(n, time.Now())
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if wait == 0 {
			return allowed, nil
		}
		sleep(ctx, wait)
	}
}
