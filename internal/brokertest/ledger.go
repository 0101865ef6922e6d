package brokertest

import (
	"encoding/json"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// ledger is what consumers have seen of a numbered stream: messages 1, 2, 3 … of each key.
// It finds what is lost, what came in the wrong order, and counts repeats.
type ledger struct {
	mu      sync.Mutex
	keys    map[string]*keyed
	count   int // distinct messages that were handled
	repeats int // deliveries beyond the first that no nack had asked for
	nacks   int
	unknown []string // what is no message of ours
	faults  []string // of order
}

type keyed struct {
	last    int // the highest that has arrived
	seen    map[int]bool
	nacked  map[int]bool
	handled map[int]bool
}

func newLedger() *ledger { return &ledger{keys: map[string]*keyed{}} }

// body is what the suite reads of a payload: of its own, and of an event in a document.
type body struct {
	Key         string `json:"key"`
	N           int    `json:"n"`
	AggregateID string `json:"aggregate_id"`
	Data        struct {
		N int `json:"n"`
	} `json:"data"`
}

func identify(m *message.Message) (key string, n int, ok bool) {
	var b body
	if json.Unmarshal(m.Payload, &b) != nil {
		return "", 0, false
	}
	if b.AggregateID != "" {
		return b.AggregateID, b.Data.N, true
	}
	return b.Key, b.N, b.Key != ""
}

// arrived notes a delivery. The first one of each message must come in its key's order, and
// when its predecessor has been handled.
func (l *ledger) arrived(key string, n int) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.keys[key]
	if k == nil {
		k = &keyed{seen: map[int]bool{}, nacked: map[int]bool{}, handled: map[int]bool{}}
		l.keys[key] = k
	}
	if k.seen[n] {
		if k.nacked[n] {
			delete(k.nacked, n) // asked for
		} else {
			l.repeats++
		}
		return false
	}
	k.seen[n] = true
	switch {
	case n != k.last+1:
		l.fault("key %s: %d arrived after %d", key, n, k.last)
	case n > 1 && !k.handled[n-1]:
		l.fault("key %s: %d arrived before %d was handled", key, n, n-1)
	}
	k.last = max(k.last, n)
	return true
}

func (l *ledger) fault(format string, args ...any) {
	if len(l.faults) < 20 {
		l.faults = append(l.faults, fmt.Sprintf(format, args...))
	}
}

// nacked and handled are called before the message is settled: afterwards would be too late.
func (l *ledger) nacked(key string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys[key].nacked[n] = true
	l.nacks++
}

func (l *ledger) handled(key string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.keys[key]; !k.handled[n] {
		k.handled[n] = true
		l.count++
	}
}

func (l *ledger) stranger(m *message.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unknown = append(l.unknown, fmt.Sprintf("message %q with %d bytes", m.UUID, len(m.Payload)))
}

// done is how many distinct messages were handled.
func (l *ledger) done() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

func (l *ledger) repeated() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.repeats
}

func (l *ledger) refused() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nacks
}

// order is nil if every key came in order.
func (l *ledger) order() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.faults) == 0 {
		return nil
	}
	return fmt.Errorf("out of order, %d times or more: %s", len(l.faults), l.faults[0])
}

// missing lists what of the sent messages has not been handled.
func (l *ledger) missing(sent map[string]int) (lost []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, upTo := range sent {
		for n := 1; n <= upTo; n++ {
			if k := l.keys[key]; k == nil || !k.handled[n] {
				lost = append(lost, fmt.Sprintf("%s/%d", key, n))
			}
		}
	}
	return lost
}

// strangers is an error if anything came that the suite did not send.
func (l *ledger) strangers() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.unknown) == 0 {
		return nil
	}
	return fmt.Errorf("%d messages came that nobody sent: %s", len(l.unknown), l.unknown[0])
}
