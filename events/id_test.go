package events

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
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
	times := []int64{1000, 1000, 999, -5, 1001, 1001, 0, 1 << 40, 1000, 1<<40 + 1}
	for _, fill := range []uint64{0, 0x5a5a5a5a5a5a5a5a, 1<<64 - 1} {
		step := 0
		s := &source{
			clock:  clockOf(func() time.Time { step++; return time.UnixMilli(times[step%len(times)]) }),
			random: func() uint64 { return fill },
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
	s := &source{clock: clockOf(func() time.Time { return time.UnixMilli(1000) }), random: rand.Uint64}
	s.last.Store(1000<<counterBits | 1<<counterBits - 2)
	var last uuid.UUID
	for i, ms := range []uint64{1000, 1001, 1001} {
		id, _ := s.next()
		if bytes.Compare(last[:], id[:]) >= 0 {
			t.Fatalf("%s was drawn after %s", id, last)
		}
		if got := binary.BigEndian.Uint64(id[:8]) >> 16; got != ms {
			t.Errorf("id %d stands in millisecond %d, want %d", i, got, ms)
		}
		last = id
	}
}

// Two processes that draw in the same millisecond differ in all that is not time.
func TestNewIDsOfTwoSourcesDiffer(t *testing.T) {
	frozen := func() time.Time { return time.UnixMilli(1000) }
	seen := make(map[uuid.UUID]bool)
	for range 1000 {
		a, b := &source{clock: clockOf(frozen), random: rand.Uint64}, &source{clock: clockOf(frozen), random: rand.Uint64}
		for _, s := range []*source{a, b, a, b} {
			id, _ := s.next()
			if seen[id] {
				t.Fatalf("%s was drawn twice", id)
			}
			seen[id] = true
		}
	}
}

// clockOf reads now each time.
func clockOf(now func() time.Time) clock {
	mono := int64(0)
	return clock{
		wall: func() int64 { return now().UnixNano() },
		mono: func() int64 { mono += offsetHolds; return mono },
	}
}

// A clock that is set is heeded within a millisecond, and goes on evenly before.
func TestClockThatIsSet(t *testing.T) {
	wall, mono := int64(1_000_000_000), int64(0)
	c := clock{wall: func() int64 { return wall }, mono: func() int64 { return mono }}
	for _, step := range []struct{ pass, set, want int64 }{
		{0, 0, 1_000_000_000},
		{400_000, 0, 1_000_400_000},
		{400_000, -500_000_000, 1_000_800_000}, // not seen yet
		{200_000, 0, 501_000_000},
		{999_999, 0, 501_999_999},
		{1, 3_600_000_000_000, 3_600_502_000_000}, // seen at once: it is time to look
	} {
		mono += step.pass
		wall += step.pass + step.set
		if got := c.now(); got != step.want {
			t.Errorf("after %+v the time is %d, want %d", step, got, step.want)
		}
	}
}

// A process that is stopped between its two looks does not take the pause for an offset.
func TestClockOfAStoppedProcess(t *testing.T) {
	wall, mono, pause := int64(1_000_000_000), int64(0), int64(5_000_000_000)
	c := clock{mono: func() int64 { return mono }}
	c.wall = func() int64 {
		wall, mono, pause = wall+pause, mono+pause, 0
		return wall
	}
	if got, want := c.now(), int64(6_000_000_000); got != want {
		t.Errorf("the first look says %d, want %d", got, want)
	}
	mono, wall = mono+1000, wall+1000
	if got, want := c.now(), int64(6_000_001_000); got != want {
		t.Errorf("the second look says %d, want %d", got, want)
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
