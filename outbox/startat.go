package outbox

import "time"

// StartAt is where an owner of a new name begins. It says nothing to one that has
// run before.
type StartAt int64

const (
	// FromBeginning takes everything the log holds. The default.
	FromBeginning StartAt = 0
	// FromNow takes what is committed from the first Run on.
	FromNow StartAt = -1
)

// FromTime takes what was appended at t or later, by the database's clock. Events
// appended up to a second before may come along.
func FromTime(t time.Time) StartAt { return StartAt(max(0, t.UnixMicro())) }

// time gives the t of FromTime.
func (s StartAt) time() (t time.Time, ok bool) {
	if s <= 0 {
		return time.Time{}, false
	}
	return time.UnixMicro(int64(s)), true
}
