package events

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"

	"github.com/google/uuid"
)

// NewID draws an event id: a UUIDv7 (RFC 9562, section 5.7), unique, and greater
// than every id drawn before in this process, also when the clock stands still
// or goes back. Ids of several processes follow each other only as far as their
// clocks do: the order of a log is its own. It is safe for any number of
// goroutines and allocates nothing.
func NewID() uuid.UUID {
	id, _ := process.next()
	return id
}

// process is where this process draws its ids and its time.
var process = &source{now: time.Now, read: randomly}

// randomly fills b. crypto/rand promises not to fail: it ends the program first.
func randomly(b []byte) { _, _ = rand.Read(b) }

// source draws ids by the "Fixed Bit-Length Dedicated Counter" of RFC 9562,
// section 6.2 (method 1):
//
//	48 bits  milliseconds since 1970
//	 4 bits  version 7
//	12 bits  counter, upper part
//	 2 bits  variant
//	20 bits  counter, lower part
//	42 bits  random, fresh for each id
//
// The counter starts each millisecond at a random number whose top bit is zero,
// so that at least 2^31 ids fit in it; if ever it is used up, the next
// millisecond is begun ahead of the clock. While the clock is behind the last id
// (it was set back, or another goroutine read it later), the counter goes on in
// the last id's millisecond. Section 6.2 allows both.
type source struct {
	now  func() time.Time
	read func([]byte)

	mu      sync.Mutex
	ms      int64  // of the last id
	counter uint32 // of the last id
	// Entropy is fetched for some 500 ids at a time: one call into the kernel
	// per id would cost more than all the rest.
	entropy [4096]byte
	left    int // unused bytes at the end of entropy
}

// next draws an id, and gives the time that it was drawn at.
func (s *source) next() (uuid.UUID, time.Time) {
	now := s.now()
	ms := max(now.UnixMilli(), 0)

	s.mu.Lock()
	random := s.random64()
	switch {
	case ms > s.ms:
		s.begin(ms)
	case s.counter == 1<<32-1:
		s.begin(s.ms + 1)
	default:
		s.counter++
	}
	ms, counter := s.ms, uint64(s.counter)
	s.mu.Unlock()

	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:8], uint64(ms)<<16|0x7<<12|counter>>20)
	binary.BigEndian.PutUint64(id[8:], 0b10<<62|(counter&(1<<20-1))<<42|random>>22)
	return id, now
}

func (s *source) begin(ms int64) {
	s.ms = ms
	s.counter = uint32(s.random64()) >> 1
}

func (s *source) random64() uint64 {
	if s.left < 8 {
		s.read(s.entropy[:])
		s.left = len(s.entropy)
	}
	r := binary.NativeEndian.Uint64(s.entropy[len(s.entropy)-s.left:])
	s.left -= 8
	return r
}
