package events

import (
	"sync/atomic"
	"time"
)

// clock gives the time of day for half of what time.Now costs, which reads two
// clocks. It reads the monotonic one, and looks once in a millisecond how far the
// time of day is from it: somebody who sets the clock is heeded a millisecond late.
type clock struct {
	wall func() int64 // nanoseconds since 1970
	mono func() int64 // nanoseconds since whenever

	offset atomic.Int64 // wall - mono
	until  atomic.Int64 // on mono, offset is good enough
}

const offsetHolds = int64(time.Millisecond)

var processStart = time.Now()

func systemClock() clock {
	return clock{
		wall: func() int64 { return time.Now().UnixNano() },
		mono: func() int64 { return int64(time.Since(processStart)) },
	}
}

// now is in nanoseconds since 1970.
func (c *clock) now() int64 {
	mono := c.mono()
	if mono < c.until.Load() {
		return mono + c.offset.Load()
	}
	wall := c.wall()
	if c.mono()-mono > offsetHolds/10 {
		return wall // we were held up, perhaps between the two: that would stay as an error
	}
	// Whoever comes between the two stores takes the former offset, which has just been good.
	c.offset.Store(wall - mono)
	c.until.Store(mono + offsetHolds)
	return wall
}
