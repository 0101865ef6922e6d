package outbox

import "sync"

// wakeups connects the commits of this process with its relays and its notifiers,
// by schema. A signal that reaches a relay of another database costs it one
// needless read.
var wakeups = struct {
	sync.Mutex
	relays    signals           // told of everything
	notifiers signals           // told of the commits of this process only, or processes would echo each other
	committed map[string]uint64 // how many signals told of a commit; the others were hints
}{relays: signals{}, notifiers: signals{}, committed: map[string]uint64{}}

// wake signals that something was committed through this process.
func wake(schema string) {
	wakeups.Lock()
	defer wakeups.Unlock()
	wakeups.committed[schema]++
	wakeups.relays.send(schema)
	wakeups.notifiers.send(schema)
}

// wakeForOthers signals that something was, or may have been, committed through
// another process.
func wakeForOthers(schema string) {
	wakeups.Lock()
	defer wakeups.Unlock()
	wakeups.committed[schema]++
	wakeups.relays.send(schema)
}

// hint signals that something was appended that may be committed soon.
func hint(schema string) {
	wakeups.Lock()
	defer wakeups.Unlock()
	wakeups.relays.send(schema)
}

// commits is what a listener tells a commit from a hint by: it has grown.
func commits(schema string) uint64 {
	wakeups.Lock()
	defer wakeups.Unlock()
	return wakeups.committed[schema]
}

// listenWake gives a channel that holds at most one signal, and what ends it.
func listenWake(schema string) (<-chan struct{}, func()) { return wakeups.relays.listen(schema) }

// listenCommits is listenWake for the commits of this process only.
func listenCommits(schema string) (<-chan struct{}, func()) { return wakeups.notifiers.listen(schema) }

// signals are those who want to be woken, by schema.
type signals map[string]map[chan struct{}]struct{}

// send is called under the lock.
func (s signals) send(schema string) {
	for c := range s[schema] {
		select {
		case c <- struct{}{}:
		default: // one is pending already: it will look after this commit too
		}
	}
}

func (s signals) listen(schema string) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	wakeups.Lock()
	defer wakeups.Unlock()
	if s[schema] == nil {
		s[schema] = map[chan struct{}]struct{}{}
	}
	s[schema][c] = struct{}{}
	return c, func() {
		wakeups.Lock()
		defer wakeups.Unlock()
		delete(s[schema], c)
	}
}
