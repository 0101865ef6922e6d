package limit

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// Stamp is what every event needs: an id and a time.
type Stamp struct {
	ID uuid.UUID
	At time.Time
}

// ClockAndID is the limit of dispatch: a loop that reads the clock and makes a UUIDv7 of
// entropy that is fetched in blocks, for one goroutine only, and calls nobody. The zero
// value is ready.
type ClockAndID struct {
	Last    Stamp // so that no compiler leaves the work out
	entropy [4096]byte
	left    int
}

// Run makes n stamps.
func (c *ClockAndID) Run(n int) {
	for range n {
		if c.left < 10 {
			_, _ = rand.Read(c.entropy[:])
			c.left = len(c.entropy)
		}
		c.Last.At = time.Now()
		binary.BigEndian.PutUint64(c.Last.ID[:8], uint64(c.Last.At.UnixMilli())<<16)
		copy(c.Last.ID[6:], c.entropy[len(c.entropy)-c.left:][:10])
		c.left -= 10
		c.Last.ID[6] = c.Last.ID[6]&0x0f | 0x70
		c.Last.ID[8] = c.Last.ID[8]&0x3f | 0x80
	}
}
