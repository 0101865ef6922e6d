package outbox

import "sync"

// wakeups connects the commits of this process with its relays, by schema. A
// signal that reaches a relay of another database costs it one needless read.
var wakeups = struct {
	sync.Mutex
	listeners map[string]map[chan struct{}]struct{}
	committed map[string]uint64 // how many signals told of a commit; the others were hints
}{listeners: map[string]map[chan struct{}]struct{}{}, committed: map[string]uint64{}}

// wake signals that something was committed.
func wake(schema string) {
	wakeups.Lock()
	defer wakeups.Unlock()
	wakeups.committed[schema]++
	sendSignal(schema)
}

// hint signals that something was appended that may be committed soon.
func hint(schema string) {
	wakeups.Lock()
	defer wakeups.Unlock()
	sendSignal(schema)
}

// commits is what a listener tells a commit from a hint by: it has grown.
func commits(schema string) uint64 {
	wakeups.Lock()
	defer wakeups.Unlock()
	return wakeups.committed[schema]
}

func sendSignal(schema string) {
	for c := range wakeups.listeners[schema] {
		select {
		case c <- struct{}{}:
		default: // one is pending already: it will look after this commit too
		}
	}
}

// listenWake gives a channel that holds at most one signal, and what ends it.
func listenWake(schema string) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	wakeups.Lock()
	defer wakeups.Unlock()
	if wakeups.listeners[schema] == nil {
		wakeups.listeners[schema] = map[chan struct{}]struct{}{}
	}
	wakeups.listeners[schema][c] = struct{}{}
	return c, func() {
		wakeups.Lock()
		defer wakeups.Unlock()
		delete(wakeups.listeners[schema], c)
	}
}
