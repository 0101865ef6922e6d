package workload

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/bench/harness"
)

// Consume has that many goroutines handle rows messages: each takes as long as it says
// and acks. Then, or when ctx ends, it calls stop, which must close the channel. The rate
// counts from the first message to the last ack, since joining a group takes its time.
func Consume(ctx context.Context, from <-chan *message.Message, stop func() error, rows, goroutines int, each time.Duration) (float64, error) {
	var handled atomic.Int64
	var began, took time.Duration
	var first sync.Once
	start, done := time.Now(), make(chan struct{})
	var handling sync.WaitGroup
	for range goroutines {
		handling.Go(func() {
			for m := range from {
				first.Do(func() { began = time.Since(start) })
				if each > 0 {
					time.Sleep(each)
				}
				m.Ack()
				if handled.Add(1) == int64(rows) {
					took = time.Since(start) - began
					close(done)
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		handling.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	case <-ended:
	}
	if err := stop(); err != nil {
		return 0, err
	}
	<-ended
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case handled.Load() < int64(rows):
		return 0, fmt.Errorf("the subscription has ended after %d messages instead of %d", handled.Load(), rows)
	}
	return harness.PerSecond(rows, took), nil
}
