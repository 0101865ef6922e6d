package postbustest

import (
	"sync"
	"time"
)

// WaitOption changes how long a helper waits. See [Within].
type WaitOption struct{ limit time.Duration }

// Within is the longest that a helper waits before it fails the test. It costs
// nothing when all goes well: helpers return as soon as there is what they wait for.
func Within(d time.Duration) WaitOption { return WaitOption{d} }

func limitOf(opts []WaitOption, otherwise time.Duration) time.Duration {
	for _, o := range opts {
		if o.limit > 0 {
			otherwise = o.limit
		}
	}
	return otherwise
}

// changes wakes those who wait for a condition.
type changes struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next change; nil while nobody waits
}

func (c *changes) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		close(c.next)
		c.next = nil
	}
}

func (c *changes) following() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = make(chan struct{})
	}
	return c.next
}

// wait returns when cond holds, which it asks anew after every change.
func (c *changes) wait(cond func() bool, opts []WaitOption) (limit time.Duration, ok bool) {
	limit = limitOf(opts, 10*time.Second)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		changed := c.following() // before cond, or a change between the two is missed
		if cond() {
			return limit, true
		}
		select {
		case <-changed:
		case <-timer.C:
			return limit, cond()
		}
	}
}
