package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// steers: it is about the owner and not about one parked event, and is carried out
// with nothing in flight.
func (r *request) steers() bool { return r.action != actionReplay && r.action != actionDiscard }

// steerable looks for requests that can be carried out now, and notes whether one
// has to wait for the end of the round.
func (s *seat) steerable(requests []request) bool {
	found := false
	s.moveWaits = false
	for i := range requests {
		switch r := &requests[i]; {
		case !r.steers():
		case s.ready(r):
			found = true
		default:
			s.moveWaits = true
		}
	}
	return found
}

// ready: a rewind inside an unfinished round is whole if the round has no late
// event left, or none can lie below where it goes back to, and if nothing between is
// left out.
func (s *seat) ready(r *request) bool {
	p := &s.chain.pos
	if r.action != actionRewind || p.finished() {
		return true
	}
	lateDone := p.lastID >= p.round.prevID || len(p.round.late()) == 0 || r.logID <= 1
	return lateDone && r.logID-1 <= max(p.lastID, p.round.prevID)
}

// steer carries out what is asked of the owner, each request in a transaction of its
// own with a link. Nothing may be in flight.
func (s *seat) steer(hard context.Context) error {
	requests, err := s.requests(hard)
	if err != nil {
		return err
	}
	for i := range requests {
		if r := &requests[i]; r.steers() && s.ready(r) {
			if err := s.carry(hard, r); err != nil {
				return err
			}
			hit(fpAfterSteer)
		}
	}
	return nil
}

func (s *seat) carry(hard context.Context, r *request) error {
	hit(fpBeforeSteer)
	next := s.ctl
	pos := &s.chain.pos
	outcome := ""
	switch r.action {
	case actionPause:
		next.paused, outcome = true, "paused"
	case actionResume:
		next.paused, outcome = false, "resumed"
	case actionRate:
		next.rate, outcome = 0, "as fast as it can"
		if r.rate != nil {
			next.rate, outcome = *r.rate, fmt.Sprintf("at most %g events a second", *r.rate)
		}
	case actionTypes:
		next.types, outcome = r.types, "all types"
		if r.types != nil {
			outcome = fmt.Sprintf("only %q", r.types)
		}
	case actionSkip:
		if at := s.passedUpTo(); r.logID <= at {
			outcome = fmt.Sprintf("refused: the position is at %d already, which lies behind: nothing to skip", at)
			break
		}
		next.skipBelow = r.logID
		outcome = fmt.Sprintf("skips what lies below %d", r.logID)
		if n, err := s.countBelow(hard, r.logID); err == nil {
			outcome += fmt.Sprintf(": %d events", n)
		}
	case actionRewind:
		floor, err := s.db.floor(hard)
		switch {
		case err != nil:
			return err
		case r.logID <= floor:
			outcome = fmt.Sprintf("refused: retention has taken the events up to %d from the log", floor)
		case r.logID > pos.round.upper:
			outcome = fmt.Sprintf("refused: the position is at %d, which does not lie behind %d: nothing to go back to", pos.round.upper, r.logID)
		default:
			if next.skipBelow >= r.logID {
				next.skipBelow = 0
			}
			outcome = fmt.Sprintf("goes back to %d", r.logID)
			if err := s.chain.rewind(hard, r.logID, s.db.lockPositions(), s.db.ifStillInLog(r.logID), s.controlled(next), s.done(r, outcome)); err != nil {
				return err
			}
			s.steered(r, next, outcome)
			return nil
		}
	default:
		outcome = "refused: unknown to this version"
	}
	if err := s.chain.advance(hard, pos.lastID, true, s.controlled(next), s.done(r, outcome)); err != nil {
		return err
	}
	s.steered(r, next, outcome)
	return nil
}

func (s *seat) steered(r *request, next control, outcome string) {
	s.ctl = next
	s.log.Info("steered", "action", r.action, "request", r.id, "by", r.by, "outcome", outcome)
}

// passedUpTo is the id up to which the position has passed, save for late events.
func (s *seat) passedUpTo() int64 {
	p := &s.chain.pos
	if p.finished() {
		return max(p.round.upper, p.round.seenID, s.ctl.skipBelow-1)
	}
	return max(p.lastID, p.round.prevID, s.ctl.skipBelow-1)
}

// countBelow says how many events a skip leaves out, if that is soon known.
func (s *seat) countBelow(hard context.Context, id int64) (n int64, err error) {
	ctx, cancel := context.WithTimeout(hard, min(s.db.timeout, 2*time.Second))
	defer cancel()
	err = s.db.read(ctx, `SELECT count(*) FROM `+s.db.table("outbox")+` WHERE id > $1 AND id < $2`, []any{s.passedUpTo(), id},
		func(rows pgx.Rows) (bool, error) { return true, rows.Scan(&n) })
	return n, err
}

// controlled writes how the owner is steered from now on.
func (s *seat) controlled(c control) statement {
	var rate *float64
	if c.rate > 0 {
		rate = &c.rate
	}
	return statement{rows: 1, args: []any{s.who.name, c.paused, rate, c.types, c.skipBelow},
		sql: `UPDATE ` + s.db.table("relay") + ` SET paused = $2, rate = $3, types = $4, skip_below = $5 WHERE relay = $1`}
}

func (s *seat) done(r *request, outcome string) statement {
	return statement{rows: anyRows, args: []any{r.id, outcome},
		sql: `UPDATE ` + s.db.table("relay_request") + ` SET done_at = clock_timestamp(), outcome = $2 WHERE id = $1`}
}

// rewind writes the link of a round that takes everything from id on anew: all that
// the present round's snapshot sees, as if nothing had been seen before. What that
// snapshot does not see is left to the next round, as ever.
func (c *chain) rewind(ctx context.Context, id int64, with ...statement) error {
	p := c.pos
	next := round{n: p.n + 1, prev: emptySnapshot, prevID: id - 1, snap: p.round.snap, seenID: p.round.seenID, upper: p.round.upper, known: time.Now()}
	link := statement{sql: c.rewindSQL, rows: 1,
		args: []any{c.who.name, c.slots.from, c.slots.to, next.n, c.holder.String(), next.prevID, next.snap.text, p.holder.String(), next.seenID, next.upper}}
	if err := c.write(ctx, true, append(with, link)...); err != nil {
		return err
	}
	c.isFresh = false
	c.pos = position{n: next.n, holder: c.holder, round: next}
	return nil
}

// parkedIDs are the ids above which are put aside or discarded: a rewind does not
// take them from the log.
func (s *seat) parkedIDs(hard context.Context, above int64) ([]int64, error) {
	var ids []int64
	err := s.db.read(hard, `SELECT log_id FROM `+s.db.table("parked")+` WHERE relay = $1 AND slot BETWEEN $2 AND $3 AND log_id > $4`,
		[]any{s.who.name, s.chain.slots.from, s.chain.slots.to, above}, func(rows pgx.Rows) (bool, error) {
			var id int64
			err := rows.Scan(&id)
			ids = append(ids, id)
			return true, err
		})
	if err != nil {
		return nil, fmt.Errorf("load the parked events of %s: %w", s.who, explain(s.db.schema, err))
	}
	return ids, nil
}
