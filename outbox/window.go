package outbox

import (
	"context"
	"sync"
)

// window holds, in order, the events that are dispatched and lie above the last
// committed link: what a crash or a takeover may publish twice. It is bounded by
// count and bytes.
type window struct {
	maxItems, maxBytes int

	mu    sync.Mutex
	items []*item
	bytes int
	ended bool // all of the round is in it or has been
	waits bool // the next event has found no room

	room chan struct{} // one signal at most: something was taken out
}

func newWindow(maxItems, maxBytes int) *window {
	return &window{maxItems: maxItems, maxBytes: maxBytes, room: make(chan struct{}, 1)}
}

// put adds as many of items as there is room for, at least one, waiting for room
// if there is none, and says how many.
func (w *window) put(ctx context.Context, items []*item) (int, error) {
	for {
		if n := w.tryPut(items); n > 0 {
			return n, nil
		}
		select {
		case <-w.room:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (w *window) tryPut(items []*item) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, bytes := 0, w.bytes
	for n < len(items) && len(w.items)+n < w.maxItems && (bytes+items[n].bytes <= w.maxBytes || len(w.items)+n == 0) {
		bytes += items[n].bytes
		n++
	}
	w.items, w.bytes, w.waits = append(w.items, items[:n]...), bytes, n == 0
	return n
}

// view is what the window holds now. The slice is not changed any more.
func (w *window) view() (items []*item, bytes int, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.items[:len(w.items):len(w.items)], w.bytes, w.ended
}

// crammed tells whether the next event waits for room: nothing new can come to
// show whether the broker accepts anything.
func (w *window) crammed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waits
}

// take removes the first n, which a committed link has passed.
func (w *window) take(n int) {
	w.mu.Lock()
	for _, it := range w.items[:n] {
		w.bytes -= it.bytes
	}
	w.items = w.items[n:]
	w.mu.Unlock()
	select {
	case w.room <- struct{}{}:
	default:
	}
}

func (w *window) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
}

func (w *window) reset() {
	w.mu.Lock()
	w.items, w.bytes, w.ended, w.waits = nil, 0, false, false
	w.mu.Unlock()
}
