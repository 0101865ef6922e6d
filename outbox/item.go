package outbox

import (
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// The states of an item. Whoever changes one by compare-and-swap owns the item's
// other fields from then on.
const (
	stQueued  uint32 = iota // in a lane, or being sent: the position cannot pass it
	stHeld                  // failing, or waiting behind a failing one of its key: may be put aside
	stParking               // being written to the parked table: not sent meanwhile
	stParked                // its row is in the parked table; the position has passed it
	stSending               // a held or parked one that is being tried again
	stSettled               // sent, or given up for good: done with
)

// item is one event between the log and its settling. It lives in a chunk's slab
// while it is in the window, alone once it is parked.
type item struct {
	Message
	slot  int16
	state atomic.Uint32
	bytes int // of the payload, known while the payload itself is not in memory

	tries    int                         // calls that failed, by this holder
	attempts int                         // failed ones, those of an earlier holder included
	retry    *backoff.ExponentialBackOff // nil until the first failure
	lastErr  string                      // of the last failed attempt
	giveUp   bool                        // no more attempts: to be noted as given up
	parked   bool                        // its row is in the parked table
	replays  int                         // how often a person had it replayed
	failedAt time.Time                   // of the first failure by this holder
	left     <-chan struct{}             // its last call was left behind; closed when that comes back
}

// hangs tells whether the item's last call has not come back yet.
func (it *item) hangs() bool {
	if it.left == nil {
		return false
	}
	select {
	case <-it.left:
		it.left = nil
		return false
	default:
		return true
	}
}

// chunk is a run of a round's rows in order, read together.
type chunk struct {
	items []*item
	bytes int // of their payloads
}

func newChunk(slab []item) *chunk {
	c := &chunk{items: make([]*item, len(slab))}
	for i := range slab {
		c.items[i] = &slab[i]
		c.bytes += slab[i].bytes
	}
	return c
}
