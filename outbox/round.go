package outbox

import (
	"time"

	"github.com/google/uuid"
)

// round is the set of rows that are visible in one snapshot and were not in the
// one before: late ones, of transactions that ran then and have finished, and
// the rest, with ids above what was seen then. All late ids lie at or below
// prevID, all others above, so that id order is reading order.
//
// Why it is whole: a transaction of ours drew its xid after seenID was read and
// finished before the snapshot was taken, so the snapshot's xmax lies above that
// xid; a transaction at or above xmax therefore drew its xid, and hence all its
// ids, after seenID was read, and its rows lie above seenID: in the next round's
// rest. This is the idea of PgQ's ticks, without its tables.
type round struct {
	n      int64    // number of the link that started it
	prev   snapshot // P
	prevID int64    // L
	snap   snapshot // T
	seenID int64    // L': the next round's prevID
	upper  int64    // U: no row of the round lies above

	known time.Time // a moment of this process after T was taken
}

// firstRound stands for everything before the log's first row: finished, and with
// nothing seen.
func firstRound() round {
	return round{n: 1, prev: emptySnapshot, snap: emptySnapshot}
}

// late lists the transactions whose rows are the round's late ones.
func (r *round) late() []uint64 { return r.snap.finishedSince(&r.prev) }

// has tells whether a row of the rest belongs to the round.
func (r *round) has(xid uint64) bool { return r.snap.sees(xid) && !r.prev.sees(xid) }

// position is how far a relay is: all of the round up to lastID is settled.
type position struct {
	n      int64     // number of the latest link
	holder uuid.UUID // who wrote it
	round  round
	lastID int64
}

func (p *position) finished() bool { return p.lastID == p.round.upper }
