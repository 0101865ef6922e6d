package outbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// snapshot is a pg_snapshot: which transactions had finished when it was taken.
// https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT-PARTS
type snapshot struct {
	xmin uint64   // all below had finished
	xmax uint64   // one past the last that had finished: all from here on had not
	xip  []uint64 // in between, those that were running; sorted
	text string
}

// emptySnapshot has seen nothing: what a new relay starts from.
var emptySnapshot = snapshot{xmin: 1, xmax: 1, text: "1:1:"}

func parseSnapshot(text string) (snapshot, error) {
	s := snapshot{text: text}
	lo, rest, ok1 := strings.Cut(text, ":")
	hi, list, ok2 := strings.Cut(rest, ":")
	var err1, err2 error
	s.xmin, err1 = strconv.ParseUint(lo, 10, 64)
	s.xmax, err2 = strconv.ParseUint(hi, 10, 64)
	if !ok1 || !ok2 || err1 != nil || err2 != nil || s.xmin > s.xmax {
		return snapshot{}, fmt.Errorf("snapshot %.80q: its form is not xmin:xmax:xip,xip", text)
	}
	if list == "" {
		return s, nil
	}
	s.xip = make([]uint64, 0, strings.Count(list, ",")+1)
	for x := range strings.SplitSeq(list, ",") {
		xid, err := strconv.ParseUint(x, 10, 64)
		if err != nil || xid < s.xmin || xid >= s.xmax {
			return snapshot{}, fmt.Errorf("snapshot %.80q: %q is no running transaction of it", text, x)
		}
		s.xip = append(s.xip, xid)
	}
	slices.Sort(s.xip)
	return s, nil
}

// sees tells whether the transaction had finished when the snapshot was taken.
func (s *snapshot) sees(xid uint64) bool {
	if xid < s.xmin {
		return true
	}
	if xid >= s.xmax {
		return false
	}
	_, running := slices.BinarySearch(s.xip, xid)
	return !running
}

// finishedSince lists the transactions that ran at prev and have finished in s.
func (s *snapshot) finishedSince(prev *snapshot) []uint64 {
	var late []uint64
	for _, xid := range prev.xip {
		if s.sees(xid) {
			late = append(late, xid)
		}
	}
	return late
}
