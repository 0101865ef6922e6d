package outbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// idlePoll paces the looks of a relay that has nothing to do: soon after it was
// busy, then ever more rarely.
type idlePoll struct {
	most  time.Duration
	next  time.Time
	last  time.Time // when it looked
	delay time.Duration
	due   bool // woken: look now

	commits uint64 // of the signals seen
	asked   map[uint64]struct{}

	lastID int64 // the sequence's position as last seen
}

const soonest = 25 * time.Millisecond

func (p *idlePoll) reset(most time.Duration) {
	*p = idlePoll{most: most, due: true, last: time.Now()}
	p.busy()
}

// busy starts the pace anew, after a round.
func (p *idlePoll) busy() {
	p.delay = min(soonest, p.most)
	p.next = time.Now().Add(p.delay)
	p.asked = map[uint64]struct{}{}
}

// signalled notes a signal of this process: a commit, to be looked for now, or, if
// commits has not grown, a hint, to be looked for soon and then ever more rarely.
func (p *idlePoll) signalled(commits uint64) {
	if commits != p.commits {
		p.commits, p.due = commits, true
		return
	}
	p.delay = min(soonest, p.most)
	if soon := time.Now().Add(p.delay); soon.Before(p.next) {
		p.next = soon
	}
}

// looked notes a look that found nothing. The jitter keeps many relays from
// looking in step.
func (p *idlePoll) looked() {
	p.delay = min(2*p.delay, p.most)
	p.next = time.Now().Add(time.Duration((0.8 + 0.4*rand.Float64()) * float64(p.delay)))
}

func (p *idlePoll) in() time.Duration { return time.Until(p.next) }

// overdue: work without a pause has kept it from looking, and a request waits.
func (p *idlePoll) overdue() bool { return time.Since(p.last) >= 2*p.most }

// rested: it has been idle for so long that it may tidy up.
func (p *idlePoll) rested() bool { return p.delay >= p.most }

// poll looks for what is new and for what is asked.
func (t *tenure) poll(hard context.Context) (acted bool, err error) {
	if begun, err := t.beginAtOnce(hard); begun || err != nil {
		if begun {
			t.read(hard, 0)
		}
		return begun, err
	}
	fresh, asked, err := t.look(hard)
	if err != nil {
		return false, err
	}
	if asked {
		if acted, err = t.carryOut(hard); err != nil {
			return false, err
		}
	}
	if fresh {
		return true, t.startRound(hard, t.idle.lastID)
	}
	t.idle.looked()
	return acted, nil
}

// beginAtOnce begins a round without a look before it, where a commit was told of and
// nothing stands in the way: that commit is a round trip sooner with the publisher. It
// writes nothing if there is nothing new. Requests wait for a look, which is due
// however much is committed.
func (s *seat) beginAtOnce(hard context.Context) (begun bool, err error) {
	if !s.idle.due || s.active || s.ctl.paused || s.idle.overdue() {
		return false, nil
	}
	s.idle.due = false // before the statement: who is told of later has perhaps not been seen
	if begun, err = s.chain.startIfNew(hard); err != nil {
		return false, err
	}
	if begun {
		hit(fpRoundLinked)
	}
	return begun, nil
}

// look tells, by one read-only statement, whether a round is worth starting and
// whether somebody has asked for something. An idle owner writes nothing.
func (s *seat) look(hard context.Context) (fresh, asked bool, err error) {
	s.idle.due, s.idle.last = false, time.Now()
	r := &s.chain.pos.round
	var text string
	var lastID int64
	var unseen bool
	ctx, cancel := context.WithTimeout(hard, s.db.timeout)
	defer cancel()
	// The second last column: rows that were drawn before U was read and not
	// visible in T. Their ids lie between L' and U, which are close together.
	err = s.db.pool.QueryRow(ctx, `SELECT pg_current_snapshot()::text,
			coalesce(pg_sequence_last_value(`+quoteLiteral(s.db.table("outbox_id"))+`::regclass), 0),
			EXISTS (SELECT FROM `+s.db.table("outbox")+` WHERE id > $1 AND id <= $2 AND NOT pg_visible_in_snapshot(xid, $3::text::pg_snapshot)),
			EXISTS (SELECT FROM `+s.db.table("relay_request")+` WHERE relay = $4 AND done_at IS NULL)`,
		r.seenID, r.upper, r.snap.text, s.who.name).Scan(&text, &lastID, &unseen, &asked)
	if err != nil {
		return false, false, fmt.Errorf("%s looks for new events: %w", s.who, explain(s.db.schema, err))
	}
	s.idle.lastID = lastID
	if s.active || s.ctl.paused {
		return false, asked, nil
	}
	late, err := s.lateNow(hard, text)
	if err != nil {
		return false, false, err
	}
	// Ids that a stale L' leaves between it and U would be looked at again and
	// again: one empty round, once things are quiet, closes the gap.
	tidy := lastID > r.seenID && s.idle.rested()
	return lastID > r.upper || unseen || late || tidy, asked, nil
}

// lateNow asks for rows of transactions that ran at the last round and have
// finished since. Each transaction is asked for once; what is still open costs nothing.
func (s *seat) lateNow(hard context.Context, text string) (bool, error) {
	now, err := parseSnapshot(text)
	if err != nil {
		return false, err
	}
	r := &s.chain.pos.round
	var xids []uint64
	for _, xid := range now.finishedSince(&r.snap) {
		if _, ok := s.idle.asked[xid]; !ok {
			xids = append(xids, xid)
		}
	}
	if len(xids) == 0 {
		return false, nil
	}
	var found bool
	err = s.db.read(hard, `SELECT EXISTS (SELECT FROM `+s.db.table("outbox")+` WHERE xid = ANY ($1::text[]::xid8[]) AND id + 0 <= $2)`,
		[]any{texts(xids), r.seenID}, func(rows pgx.Rows) (bool, error) { return false, rows.Scan(&found) })
	if err != nil {
		return false, fmt.Errorf("%s looks for late events: %w", s.who, explain(s.db.schema, err))
	}
	for _, xid := range xids {
		s.idle.asked[xid] = struct{}{}
	}
	return found, nil
}
