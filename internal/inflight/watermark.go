package inflight

import "slices"

// A Watermark follows one source whose deliveries are settled in any order, and
// knows up to where all is: what a Kafka consumer may commit. Adding and settling
// cost constant time, amortised, as long as offsets are nearly without gaps, else
// the logarithm of what is open. For one goroutine.
type Watermark struct {
	open  []mark // by offset; the first is not done
	head  int    // of open: what is before it is over
	low   int64
	known bool
}

type mark struct {
	offset int64
	done   bool
}

// Add notes that offset has been taken on. Offsets come in ascending order,
// gaps are allowed; one that is not above the last is ignored.
func (w *Watermark) Add(offset int64) {
	if n := len(w.open); n > w.head && offset <= w.open[n-1].offset || w.known && offset < w.low {
		return
	}
	if !w.known {
		w.low, w.known = offset, true
	}
	if w.head > 64 && w.head > len(w.open)/2 { // the room of the settled ones is used again
		w.open = w.open[:copy(w.open, w.open[w.head:])]
		w.head = 0
	}
	w.open = append(w.open, mark{offset: offset})
}

// Done notes that offset is handled. One that was never added, or is done, is ignored.
func (w *Watermark) Done(offset int64) {
	i, ok := w.find(offset)
	if !ok {
		return
	}
	w.open[i].done = true
	for w.head < len(w.open) && w.open[w.head].done {
		w.low = w.open[w.head].offset + 1
		w.head++
	}
}

func (w *Watermark) find(offset int64) (int, bool) {
	open := w.open[w.head:]
	if len(open) == 0 || offset < open[0].offset {
		return 0, false
	}
	if i := offset - open[0].offset; i < int64(len(open)) && open[i].offset == offset {
		return w.head + int(i), true
	}
	i, ok := slices.BinarySearchFunc(open, offset, func(m mark, o int64) int {
		switch {
		case m.offset < o:
			return -1
		case m.offset > o:
			return 1
		}
		return 0
	})
	return w.head + i, ok
}

// Low is the offset below which all that was added is done: the one to commit,
// since Kafka's committed offset is that of the next record to be read. Before
// anything is done it is the first one added; false if nothing was added yet.
func (w *Watermark) Low() (offset int64, ok bool) { return w.low, w.known }

// Open is how many offsets are added and not below Low.
func (w *Watermark) Open() int { return len(w.open) - w.head }
