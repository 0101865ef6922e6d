package inflight

import (
	"context"
	"sync/atomic"
	"time"
)

// messageContext is the context of one message, made for nothing: only when
// somebody asks for its end is there a real one, which it then stands for in all.
// The standard library recognises the real one behind it (by Value and Done),
// so contexts derived from it cost no goroutine and have the right cause.
type messageContext struct {
	base  context.Context // never cancelled
	ended *liveContext    // one that is over
	live  atomic.Pointer[liveContext]
}

type liveContext struct {
	context.Context
	cancel context.CancelCauseFunc
}

func newLiveContext(base context.Context) *liveContext {
	ctx, cancel := context.WithCancelCause(base)
	return &liveContext{ctx, cancel}
}

func (c *messageContext) real() *liveContext {
	if l := c.live.Load(); l != nil {
		return l
	}
	l := newLiveContext(c.base)
	if c.live.CompareAndSwap(nil, l) {
		return l
	}
	l.cancel(nil)
	return c.live.Load()
}

// end cancels it; a nil cause is context.Canceled.
func (c *messageContext) end(cause error) {
	if cause == nil && c.live.CompareAndSwap(nil, c.ended) {
		return
	}
	c.real().cancel(cause)
}

func (c *messageContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *messageContext) Done() <-chan struct{}       { return c.real().Done() }

func (c *messageContext) Err() error {
	if l := c.live.Load(); l != nil {
		return l.Err()
	}
	return nil
}

func (c *messageContext) Value(key any) any {
	if l := c.live.Load(); l != nil {
		return l.Value(key)
	}
	if _, ok := key.(*int); ok { // the key by which package context looks for its own kind
		return c.real().Value(key)
	}
	return c.base.Value(key)
}

func (c *messageContext) String() string { return "inflight.message" }
