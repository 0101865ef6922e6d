package outbox

import (
	"fmt"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
)

// Relays of one process that are behind read the log together: each gets all of it, in
// order, and the log is read about as often as by one.
func TestRelaysOfAProcessShareWhatTheyRead(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	const keys, each, relays = 20, 1500, 4 // 30,000 events: 15 blocks
	f.backlog(each, names("k", keys)...)
	sinks := make([]*sink, relays)
	for i := range sinks {
		sinks[i] = newSink()
		cfg := f.config()
		cfg.Name = fmt.Sprint("relay-", i)
		f.start(sinks[i], cfg)
	}
	for i, s := range sinks {
		testkit.Eventually(t, 30*time.Second, func() bool { return s.distinct() == keys*each }, fmt.Sprintf("relay %d has all", i))
		for _, k := range names("k", keys) {
			got := s.of(k)
			for j := range got {
				if got[j] != j+1 {
					t.Fatalf("relay %d, key %s: event %d at place %d", i, k, got[j], j+1)
				}
			}
		}
	}
}

// A block is of use to those only whose round was known before it was read.
func TestSharedBlockIsNotOlderThanTheRound(t *testing.T) {
	s := &sharedRead{users: 2, size: 10, blocks: map[int64]*block{}}
	early := time.Now()
	b, mine := s.block(11, early)
	if !mine || b.n != 1 {
		t.Fatalf("block %d, mine %v", b.n, mine)
	}
	if again, mine := s.block(20, early); mine || again != b {
		t.Error("a round from before the read reads it anew")
	}
	later := time.Now()
	if again, mine := s.block(20, later); !mine || again == b {
		t.Error("a round from after the read's begin uses it")
	}
	b.bytes = sharedBytes
	s.done(b)
	if next, _ := s.block(1, early); next.n != 0 {
		t.Error("id 1 is in another block than 0")
	} else {
		next.bytes = sharedBytes
		s.done(next)
	}
	if len(s.order) > 2 || s.bytes > 2*sharedBytes {
		t.Errorf("%d blocks and %d bytes are kept", len(s.order), s.bytes)
	}
}
