package limit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Lanes is the limit of drain.rtt: that many goroutines which call a publisher, one
// message a call, as fast as it comes back. There is no log and no order. It gives
// messages a second.
func Lanes(_ context.Context, lanes, rows int, publish func()) (float64, error) {
	var left atomic.Int64
	left.Store(int64(rows))
	var wg sync.WaitGroup
	began := time.Now()
	for range lanes {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				publish()
			}
		})
	}
	wg.Wait()
	return float64(rows) / time.Since(began).Seconds(), nil
}
