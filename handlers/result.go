package handlers

import (
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Outcome is how the delivery of a message to one handler ended.
type Outcome uint8

// The first three settle the event in this handler, for good or until a replay;
// the others give the message back to the broker.
const (
	OutcomeHandled     Outcome = iota + 1 // the handler succeeded, and that is recorded
	OutcomeDuplicate                      // it was settled before; the handler did not run
	OutcomePoisoned                       // the handler gave up; the poison queue has the message
	OutcomeHeld                           // its schema version is from the future
	OutcomeInterrupted                    // the router stops, or the subscriber took the message back
	OutcomePostponed                      // the inbox or the poison queue can't be reached, or the handler asked for time
)

// Settled tells whether this handler is done with the event.
func (o Outcome) Settled() bool { return o >= OutcomeHandled && o <= OutcomePoisoned }

func (o Outcome) String() string {
	names := [...]string{"none", "handled", "duplicate", "poisoned", "held", "interrupted", "postponed"}
	if int(o) < len(names) {
		return names[o]
	}
	return "unknown"
}

// HandlerResult is what Config.OnResult is told.
//
// A process that dies between a commit and its result tells nobody: whoever
// counts handled events by id counts OutcomeDuplicate too.
type HandlerResult struct {
	Handler     string
	Topic       string
	EventID     uuid.UUID
	EventType   string
	Key         string // partition key
	Outcome     Outcome
	Attempts    int   // calls of the handler that count, over the redeliveries that this process saw
	Redelivered bool  // see Delivery
	Replayed    bool  // see Delivery
	Err         error // of the attempt or the obstacle; nil when handled or duplicate
	Took        time.Duration
}

// Stats are counters since the router was made.
type Stats struct {
	Messages     uint64 // received; a redelivery counts again
	Acked        uint64 // all their handlers have settled, or none is for them
	Nacked       uint64 // given back
	UnknownTypes uint64 // acked, because no handler is for their type
	Undecodable  uint64 // poisoned under UndecodableHandler; counted in Poisoned too

	// Per message and handler:
	Handled     uint64
	Duplicates  uint64
	Poisoned    uint64
	Retried     uint64 // attempts that failed and were followed by another
	Held        uint64 // schema version from the future, each time it comes
	Interrupted uint64
	Postponed   uint64

	InFlight int64 // messages being handled now
}

type counters struct {
	messages, acked, nacked, unknownTypes, undecodable, retried atomic.Uint64

	outcomes [OutcomePostponed + 1]atomic.Uint64
	inFlight atomic.Int64
}

// Stats reads the counters, each by itself: their sums may be off by what
// happens meanwhile.
func (r *Router) Stats() Stats {
	c := &r.counters
	return Stats{
		Messages:     c.messages.Load(),
		Acked:        c.acked.Load(),
		Nacked:       c.nacked.Load(),
		UnknownTypes: c.unknownTypes.Load(),
		Undecodable:  c.undecodable.Load(),
		Handled:      c.outcomes[OutcomeHandled].Load(),
		Duplicates:   c.outcomes[OutcomeDuplicate].Load(),
		Poisoned:     c.outcomes[OutcomePoisoned].Load(),
		Retried:      c.retried.Load(),
		Held:         c.outcomes[OutcomeHeld].Load(),
		Interrupted:  c.outcomes[OutcomeInterrupted].Load(),
		Postponed:    c.outcomes[OutcomePostponed].Load(),
		InFlight:     c.inFlight.Load(),
	}
}
