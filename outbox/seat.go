package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// seat is what the holder of a lease works from, whether it publishes or handles:
// the position, how it is steered, what it has put aside. It belongs to the one
// goroutine that writes.
type seat struct {
	who    owner
	db     *database
	log    *slog.Logger // names the owner
	lease  *lease
	chain  *chain
	source string // source/incarnation of the log
	ctl    control
	retry  RetryConfig
	policy Policy
	hooks  Hooks

	idle   idlePoll
	active bool // a round is being read

	parked     map[int64]*item // those that hold up their key
	parkedKeys map[laneKey]int // how many of each key

	aside caps // all that is put aside and not discarded

	loading sync.Mutex // one read of payloads at a time

	// moveWaits: a rewind is asked for that only a finished round allows.
	moveWaits bool
}

// takeOver reads the latest link and writes the next one, each a statement of its
// own: in one, the position read could be older than the one a former holder is
// just committing. The control is read in between: whoever changes it writes a
// link too, which makes ours fail. had: this Run has had a position before, so
// that one that is gone was dropped.
func (s *seat) takeOver(hard context.Context, start StartAt, had bool) error {
	for {
		found, err := s.chain.load(hard)
		if err != nil {
			return err
		}
		if !found && had {
			return fmt.Errorf("%w: %s is not there any more: run it again to begin anew where its config says", ErrDropped, s.who)
		}
		ctl, _, err := s.db.readControl(hard, s.who)
		if err != nil {
			return err
		}
		if found {
			err = s.chain.advance(hard, s.chain.pos.lastID, true, s.db.register(s.who))
		} else {
			err = s.chain.create(hard, start)
		}
		if err == nil {
			s.ctl = ctl
			return nil
		}
		if !errors.Is(err, errFenced) {
			return err
		}
		// The former holder's last link slipped in before ours: read it.
		if hard.Err() != nil {
			return context.Cause(hard)
		}
	}
}

// caps is the account of what is put aside, and its bounds.
type caps struct {
	events, maxEvents int
	bytes, maxBytes   int64
	told              bool // that a bound is reached
}

func (c *caps) add(items ...*item) {
	for _, it := range items {
		c.events, c.bytes = c.events+1, c.bytes+int64(it.bytes)
	}
}

func (c *caps) remove(items ...*item) {
	for _, it := range items {
		c.events, c.bytes = c.events-1, c.bytes-int64(it.bytes)
	}
}

// crowded: nothing more may be put aside, once chosen is.
func (s *seat) crowded(chosen []*item) bool {
	c := s.aside
	c.add(chosen...)
	full := c.events >= c.maxEvents || c.bytes >= c.maxBytes
	if full && !c.told {
		s.log.Warn("as many events are put aside as may be: no further one is, and those behind a failing one wait in the log", "parked", c.events, "max_parked", c.maxEvents, "bytes", c.bytes, "max_bytes", c.maxBytes)
	}
	s.aside.told = full
	return full
}
