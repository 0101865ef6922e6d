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

// take waits until at least one of n events may pass, and says how many may.
func (p *pace) take(ctx context.Context, n int) (int, error) {
	if p.rate <= 0 || n == 0 {
		return n, ctx.Err()
	}
	const slack = 50 * time.Millisecond
	now := time.Now()
	if earliest := now.Add(-slack); p.next.Before(earliest) {
		p.next = earliest
	}
	if wait := p.next.Sub(now); wait > 0 {
		sleep(ctx, wait)
		now = time.Now()
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	allowed := min(n, max(1, int(now.Sub(p.next).Seconds()*p.rate)))
	p.next = p.next.Add(time.Duration(float64(allowed) / p.rate * float64(time.Second)))
	return allowed, nil
}
