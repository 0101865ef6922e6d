package outbox

import (
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
)

// Hooks are told what a relay or durable handler does, for metrics and traces. Each
// may be nil. They are called by the goroutines that do the work, several at once,
// and hold it up: they must return at once, and must not call what they watch. A panic of
// theirs is logged and changes nothing.
type Hooks struct {
	// Published: a call of the publisher has come back. Relays only.
	Published func(PublishedInfo)
	// Handled: a transaction of the handler has committed. Durable handlers only.
	Handled func(HandledInfo)
	// Retried: an attempt has failed, and another follows.
	Retried func(FailureInfo)
	// GivenUp: an attempt has failed, and no other follows until a person asks for one.
	GivenUp func(FailureInfo)
	// Parked: events were put aside, and that is committed.
	Parked func(ParkedInfo)
	// LeaseWon and LeaseLost: this process begins to move the position, or ends to,
	// a clean stop included.
	LeaseWon  func(LeaseInfo)
	LeaseLost func(LeaseInfo)
	// RoundDone: all of a round is settled, and that is committed.
	RoundDone func(RoundInfo)
}

// PublishedInfo is what came of one call.
type PublishedInfo struct {
	Name   string // of the relay
	Events int    // that the broker has accepted
	Failed int    // of the same call that it has not
	Bytes  int    // payloads of those accepted
	Took   time.Duration
}

// HandledInfo is one committed transaction of a durable handler.
type HandledInfo struct {
	Name   string // of the handler
	Events int
	Took   time.Duration // from BEGIN to the answer to COMMIT
}

// FailureInfo is one attempt that failed.
type FailureInfo struct {
	Name      string // of the relay or handler
	LogID     int64
	EventID   uuid.UUID
	EventType string
	Key       string
	Attempts  int           // counted so far; those of an outage are not
	Error     string        // one line, at most 1 KiB, without credentials
	After     time.Duration // until the next attempt; 0 if given up
}

// ParkedInfo is what one link has put aside.
type ParkedInfo struct {
	Name     string // of the relay or handler
	Retrying int    // failing
	Waiting  int    // behind a failing one of their key
	GivenUp  int
}

// LeaseInfo says whose lease changed.
type LeaseInfo struct {
	Name   string // of the relay or handler
	Holder uuid.UUID
}

// RoundInfo is one finished round.
type RoundInfo struct {
	Name    string // of the relay or handler
	Round   int64
	UpperID int64 // no event of the round lies above
}

// told calls a hook, which is the user's and may panic.
func told[T any](log *slog.Logger, hook func(T), info T) {
	if hook == nil {
		return
	}
	defer func() {
		if v := recover(); v != nil {
			log.Error("a hook panicked", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	hook(info)
}
