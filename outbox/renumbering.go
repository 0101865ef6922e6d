package outbox

import (
	"slices"
	"strconv"
	"strings"
)

// renumbering replaces transaction ids of another cluster by low ones of this: ids
// that have long been used up here, so that nobody will ever run under them and all
// snapshots from now on see them. It keeps their order, and it keeps apart what a
// snapshot of a position can tell apart. So a snapshot and the rows that are brought
// over with the same renumbering agree as before: what it has seen, what it has not,
// and what was running. Nothing else has to change when a log moves.
//
// If the other cluster's ids lie below those that run here anyway, they stay as they
// are: as after pg_upgrade, which carries the next transaction id over, and in a
// cluster that has come further.
type renumbering struct {
	same  bool     // ids below limit stay as they are
	limit uint64   // no transaction below runs here, or ever will
	above []uint64 // else: where a new number begins; sorted, no duplicates
	end   uint64   // past all that any snapshot has seen, in the other cluster's terms
	last  uint64   // the number of what no snapshot has seen
}

// lowest is FirstNormalTransactionId of PostgreSQL's access/transam.h. Below are ids
// with a meaning of their own; snapshots of relays that have seen nothing are "1:1:".
const lowest = 3

// newRenumbering is made from the positions' snapshots and from the transactions
// that are to stay apart from all others: those that ran in a snapshot, and have
// left rows. limit is the xmin of a snapshot taken here. ok is false if this cluster
// has not used up as many ids as are needed.
func newRenumbering(snapshots []snapshot, apart []uint64, limit uint64) (r renumbering, ok bool) {
	r.limit, r.end = limit, lowest
	for _, s := range snapshots {
		r.end = max(r.end, s.xmax)
	}
	if r.end < limit {
		r.same, r.last = true, limit-1
		return r, true
	}
	for _, s := range snapshots {
		r.above = append(r.above, s.xmax)
	}
	for _, x := range apart {
		if x < r.end { // what lies above ran in no snapshot
			r.above = append(r.above, x, x+1)
		}
	}
	slices.Sort(r.above)
	r.above = slices.DeleteFunc(slices.Compact(r.above), func(x uint64) bool { return x <= lowest })
	r.last = r.xid(r.end)
	return r, r.last < limit
}

// xid gives the new number of a transaction of the other cluster.
func (r *renumbering) xid(x uint64) uint64 {
	if r.same {
		return min(x, r.last)
	}
	if x < lowest {
		return x
	}
	n, found := slices.BinarySearch(r.above, x)
	if found {
		n++
	}
	return lowest + uint64(n)
}

// snapshot gives what s becomes. Of what ran in it, only those in kept are named:
// the others have left no rows, and never will.
func (r *renumbering) snapshot(s *snapshot, kept []uint64) snapshot {
	n := snapshot{xmax: r.xid(s.xmax)}
	for _, x := range s.xip {
		if _, ok := slices.BinarySearch(kept, x); ok {
			n.xip = append(n.xip, r.xid(x))
		}
	}
	n.xmin = n.xmax
	if len(n.xip) > 0 {
		n.xmin = n.xip[0]
	}
	n.text = strconv.FormatUint(n.xmin, 10) + ":" + strconv.FormatUint(n.xmax, 10) + ":" + strings.Join(texts(n.xip), ",")
	return n
}

// sql is xid as an expression over the column of that name; above goes in as the
// parameter of that number, a text[] of it.
func (r *renumbering) sql(parameter string) string {
	return `(` + strconv.Itoa(lowest) + ` + width_bucket(xid, ` + parameter + `::text[]::xid8[]))::text::xid8`
}
