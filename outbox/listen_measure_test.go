package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/internal/testkit"
)

// clock is a publisher that notes when it got each event.
type clock struct {
	mu sync.Mutex
	at map[int]time.Time
}

func (c *clock) BatchContract() BatchContract { return BatchContract{StopsKeyAtFirstFailure: true} }
func (c *clock) Close() error                 { return nil }
func (c *clock) Publish(string, ...*message.Message) error {
	panic("the relay prefers the batch call")
}

func (c *clock) PublishBatch(_ context.Context, msgs []*Message, results []Result) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, m := range msgs {
		c.at[numberOf(m.Payload)] = now
		results[i] = Result{Status: Done}
	}
}

func (c *clock) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.at)
}

// measureWakeup prints how long events take from a commit in another process to the
// publisher of a relay that sleeps: each is committed when the relay's pauses have
// grown to some 400 ms since the one before.
func measureWakeup(t *testing.T, f *fixture, notified bool) {
	if notified {
		f.listen(t, testkit.URL(t, testkit.PG15), nil)
	}
	child := f.otherProcess(t, notified)
	c := &clock{at: map[int]time.Time{}}
	cfg := f.config()
	cfg.PollInterval, cfg.Lease = time.Second, 10*time.Second
	stop := f.start(c, cfg)
	const events = 60
	for n := 1; n <= events; n++ {
		sleep(t.Context(), 800*time.Millisecond) // a measurement waits for times
		child.Signal(syscall.SIGUSR1)
		testkit.Eventually(t, 20*time.Second, func() bool { return c.count() == n }, "event %d is published", n)
	}
	stop()
	var took []time.Duration
	for line := range strings.Lines(child.Output()) {
		var n int
		var nanos int64
		if _, err := fmt.Sscanf(line, "committed %d %d", &n, &nanos); err == nil {
			took = append(took, c.at[n].Sub(time.Unix(0, nanos)))
		}
	}
	slices.Sort(took)
	at := func(q float64) time.Duration { return took[int(q*float64(len(took)-1))].Round(10 * time.Microsecond) }
	fmt.Printf("commit in another process to published, %d events, notified=%t: p50 %s, p90 %s, p99 %s, longest %s\n",
		len(took), notified, at(0.5), at(0.9), at(0.99), at(1))
}
