package events

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestNewIDIsAUUIDv7OfNow(t *testing.T) {
	before := time.Now().Truncate(time.Millisecond)
	id := NewID()
	after := time.Now()
	if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
		t.Fatalf("%s is version %d, variant %v", id, id.Version(), id.Variant())
	}
	sec, nsec := id.Time().UnixTime()
	if at := time.Unix(sec, nsec); at.Before(before) || at.After(after) {
		t.Errorf("%s says %v, drawn between %v and %v", id, at, before, after)
	}
}

// Each goroutine sees its own ids increase, and no id is drawn twice.
func TestNewIDIncreasesAcrossGoroutines(t *testing.T) {
	const goroutines, each = 8, 20_000
	drawn := make([][]uuid.UUID, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			ids := make([]uuid.UUID, each)
			for i := range ids {
				ids[i] = NewID()
			}
			drawn[g] = ids
		})
	}
	wg.Wait()
	seen := make(map[uuid.UUID]bool, goroutines*each)
	for _, ids := range drawn {
		for i, id := range ids {
			if seen[id] {
				t.Fatalf("%s was drawn twice", id)
			}
			seen[id] = true
			if i > 0 && bytes.Compare(ids[i-1][:], id[:]) >= 0 {
				t.Fatalf("%s was drawn after %s", id, ids[i-1])
			}
		}
	}
}

// The clock may stand still, go back, or lie before 1970; entropy may be all
// ones, so that the counter starts at its highest, or all zeros.
func TestNewIDIncreasesWhateverTheClockDoes(t *testing.T) {
	clock := []int64{1000, 1000, 999, -5, 1001, 1001, 0, 1 << 40, 1000, 1<<40 + 1}
	for _, fill := range []byte{0x00, 0x5a, 0xff} {
		step := 0
		s := &source{
			now: func() time.Time { step++; return time.UnixMilli(clock[step%len(clock)]) },
			read: func(b []byte) {
				for i := range b {
					b[i] = fill
				}
			},
		}
		var last uuid.UUID
		for range 3000 {
			id, _ := s.next()
			if bytes.Compare(last[:], id[:]) >= 0 {
				t.Fatalf("%s was drawn after %s", id, last)
			}
			if id.Version() != 7 || id.Variant() != uuid.RFC4122 {
				t.Fatalf("%s is no UUIDv7", id)
			}
			last = id
		}
	}
}

// A counter that is used up begins the next millisecond ahead of the clock.
func TestNewIDOutlivesItsCounter(t *testing.T) {
	s := &source{now: func() time.Time { return time.UnixMilli(1000) }, read: randomly}
	last, _ := s.next()
	s.counter = 1<<32 - 2
	for i, ms := range []int64{1000, 1001, 1001} {
		id, _ := s.next()
		if bytes.Compare(last[:], id[:]) >= 0 && i > 0 {
			t.Fatalf("%s was drawn after %s", id, last)
		}
		if s.ms != ms {
			t.Errorf("id %d stands in millisecond %d, want %d", i, s.ms, ms)
		}
		last = id
	}
}

func TestNewIDReadsEntropyInBlocks(t *testing.T) {
	calls := 0
	s := &source{now: time.Now, read: func(b []byte) { calls++; randomly(b) }}
	for range 10_000 {
		s.next()
	}
	if calls > 50 {
		t.Errorf("%d reads of entropy for 10,000 ids", calls)
	}
}

func TestIdempotencyKey(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 120_000_000, time.UTC)
	// printf 'order-1:place:2026-03-01T12:00:00.12Z' | sha256sum
	const want = "b3a9b5d4e7ff7dc8c7074b3252cd3a8f3ea23b8d1ad01a3de357340002a6be55"
	if got := IdempotencyKey("order-1", "place", at); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := IdempotencyKey("order-1", "place", at.In(time.FixedZone("", 7200))); got != want {
		t.Error("another time zone gives another key")
	}
	if IdempotencyKey("order-1", "place", at.Add(1)) == want {
		t.Error("another nanosecond gives the same key")
	}
	// Documented: nothing escapes the colons.
	if IdempotencyKey("a:b", "c", at) != IdempotencyKey("a", "b:c", at) {
		t.Error("the documented collision is gone: correct the documentation")
	}
}
