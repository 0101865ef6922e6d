package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/typepattern"
)

// RewindTo asks for the events from the log id on to be sent, or handled, again, and
// then everything after them as if it were new. It is carried out between two rounds,
// with nothing on its way. The events come with the ids that they had, so that
// consumers that deduplicate do nothing; what was discarded is not sent. PlanRewind
// tells beforehand what it would mean.
//
// It is refused with ErrOutsideLog if retention may have taken events from id on
// (rewind to a higher id, or restore the log), with ErrWrongWay if id is ahead of the
// position, and as Pause is.
func (d *Desk) RewindTo(ctx context.Context, id int64) (RequestID, error) {
	what := fmt.Sprintf("rewind %%q to %d", id)
	if _, err := d.lookBack(ctx, id); err != nil {
		return 0, d.did(what, err)
	}
	return d.steer(ctx, what, asked{action: actionRewind, logID: &id})
}

// RewindToTime is RewindTo, to the first event that was appended at t or later. See
// [Desk.IDAt] for what that means, and refuses. If retention may have taken events
// of t or later, it is refused with ErrOutsideLog.
func (d *Desk) RewindToTime(ctx context.Context, t time.Time) (RequestID, error) {
	what := "rewind %q to " + inUTC(t)
	id, err := d.idAt(ctx, t)
	if err != nil {
		return 0, d.did(what, err)
	}
	floor, err := d.db.floor(ctx)
	if err != nil {
		return 0, d.did(what, err)
	}
	if floor > 0 && id <= floor+1 { // nothing in the log is older: what was may have been younger than t, too
		return 0, d.did(what, fmt.Errorf("%w: retention may have taken events of that time: RewindTo(%d) brings back all that is left", ErrOutsideLog, floor+1))
	}
	return d.RewindTo(ctx, id)
}

// SkipTo asks for the events below the log id to be left out, for good: those that
// were not sent yet, and those of transactions that are still open. Parked events are
// not touched. The end of the log plus one leaves out everything there is (PlanSkip
// refuses a higher one, and names the end). PlanSkip tells beforehand what would be
// left out.
//
// It is refused with ErrWrongWay if the position, or an earlier skip, has passed id
// already, with ErrOutsideLog if id lies beyond the next id of the log, and as Pause is.
func (d *Desk) SkipTo(ctx context.Context, id int64) (RequestID, error) {
	what := fmt.Sprintf("let %%q skip to %d", id)
	if _, err := d.lookAhead(ctx, id); err != nil {
		return 0, d.did(what, err)
	}
	return d.steer(ctx, what, asked{action: actionSkip, logID: &id})
}

// SkipToTime is SkipTo, to the first event that was appended at t or later: none
// of those is left out. See [Desk.IDAt] for what that means, and refuses.
func (d *Desk) SkipToTime(ctx context.Context, t time.Time) (RequestID, error) {
	id, err := d.idAt(ctx, t)
	if err != nil {
		return 0, d.did("let %q skip to "+inUTC(t), err)
	}
	return d.SkipTo(ctx, id)
}

// IDAt gives a log id such that every event appended at t or later, by the
// database's clock, has that id or a higher one. Committed events from that id on
// were appended a second before t at the earliest, or later: ids and times of one log
// grow together but for the moment between drawing the one and reading the other,
// which that second is for. It is as exact as the server's clock is steady; one that
// was set back by more counts each event by what it said then. An event's time is
// that of its append, which may be long before its commit.
//
// It is a binary search by the primary key, a few dozen small queries on a log of any
// size, and works over gaps. On a log without an event older than t it is the first
// id that the log may still have; without one as late as t, the one after the last.
// A time that is zero, or more than a minute ahead of the database's clock, is refused
// with ErrInvalidRequest.
func (d *Desk) IDAt(ctx context.Context, t time.Time) (int64, error) {
	id, err := d.idAt(ctx, t)
	if err != nil {
		return 0, d.did("find, for %q, the id of "+inUTC(t), err)
	}
	return id, nil
}

func (d *Desk) idAt(ctx context.Context, t time.Time) (int64, error) {
	const clocksDiffer = time.Minute
	if t.IsZero() {
		return 0, fmt.Errorf("%w: the time is zero: give it one, or use the id 1 for the beginning of the log", ErrInvalidRequest)
	}
	var now time.Time
	if err := d.row(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return 0, err
	}
	if t.After(now.Add(clocksDiffer)) {
		return 0, fmt.Errorf("%w: the time is to come, the database has %s: nobody knows the ids of then, so ask when it is there", ErrInvalidRequest, inUTC(now))
	}
	return d.db.idAt(ctx, t)
}

func inUTC(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Move is what a rewind or skip would mean at the moment.
type Move struct {
	// From and To are the ids of the log that would come again, or be left out, both
	// included. To below From: none.
	From, To int64
	// Events is how many committed events of these ids there are, of the types that are
	// let through. A rewind sends them again; a skip leaves them out, and those of open
	// transactions, which nobody can count, with them.
	Events int
	// Since is when the earliest of them was appended; zero if there is none.
	Since time.Time
	// Counted is whether Events and Since are all of them: counting ends after some
	// seconds, and then there are at least so many.
	Counted bool
}

// PlanRewind tells what RewindTo would mean, and changes nothing; it refuses what
// RewindTo refuses. For a time, give it what IDAt says.
func (d *Desk) PlanRewind(ctx context.Context, id int64) (Move, error) {
	what := fmt.Sprintf("plan to rewind %%q to %d", id)
	at, err := d.lookBack(ctx, id)
	if err != nil {
		return Move{}, d.did(what, err)
	}
	m := Move{From: id, To: at.passed}
	if err := d.measure(ctx, &m, at.types); err != nil {
		return Move{}, d.did(what, err)
	}
	return m, nil
}

// PlanSkip tells what SkipTo would mean, and changes nothing; it refuses what SkipTo
// refuses. For a time, give it what IDAt says.
func (d *Desk) PlanSkip(ctx context.Context, id int64) (Move, error) {
	what := fmt.Sprintf("plan to let %%q skip to %d", id)
	at, err := d.lookAhead(ctx, id)
	if err != nil {
		return Move{}, d.did(what, err)
	}
	m := Move{From: at.passed + 1, To: id - 1}
	if err := d.measure(ctx, &m, at.types); err != nil {
		return Move{}, d.did(what, err)
	}
	return m, nil
}

// whereabouts is how far a relay or handler is, and what bounds its moves.
type whereabouts struct {
	passed int64    // the highest id that was sent, parked or is left out
	end    int64    // the highest id that the log has given out
	floor  int64    // ids up to it may be gone
	types  []string // what is let through; nil: all
	lostAt *time.Time
}

// lookBack refuses what is no rewind.
func (d *Desk) lookBack(ctx context.Context, id int64) (at whereabouts, err error) {
	if at, err = d.whereabouts(ctx, id); err != nil {
		return at, err
	}
	switch {
	case id <= at.floor:
		return at, fmt.Errorf("%w: retention may have taken events up to id %d: rewind to %d or later", ErrOutsideLog, at.floor, at.floor+1)
	case id > at.passed:
		return at, fmt.Errorf("%w: its position is at id %d, so that this is no rewind: what is not sent yet comes by itself, and SkipTo leaves it out", ErrWrongWay, at.passed)
	}
	return at, nil
}

// lookAhead refuses what is no skip.
func (d *Desk) lookAhead(ctx context.Context, id int64) (at whereabouts, err error) {
	if at, err = d.whereabouts(ctx, id); err != nil {
		return at, err
	}
	switch {
	case id <= at.passed:
		return at, fmt.Errorf("%w: everything up to id %d is sent or left out already, so that this is no skip: RewindTo brings it again", ErrWrongWay, at.passed)
	case id > at.end+1:
		return at, fmt.Errorf("%w: its last id is %d: skip to %d to leave out all that it has", ErrOutsideLog, at.end, at.end+1)
	}
	return at, nil
}

func (d *Desk) whereabouts(ctx context.Context, id int64) (at whereabouts, err error) {
	if id < 1 {
		return at, fmt.Errorf("%w: log ids begin with 1: use the LogID of an event, or a time", ErrInvalidRequest)
	}
	if at, err = d.position(ctx); err != nil {
		return at, err
	}
	return at, lost(at.lostAt)
}

// position reads where a name stands. Its error wraps ErrUnknownRelay if there is none.
func (d *Desk) position(ctx context.Context) (at whereabouts, err error) {
	link := d.db.table("relay_link")
	// As seat.passedUpTo. In an unfinished round last_id counts from 0, while what the
	// rounds before have seen, up to prev_id, is passed.
	err = d.row(ctx, `SELECT r.lost_at, r.types,
			greatest(CASE a.last_id WHEN b.upper_id THEN greatest(b.upper_id, b.seen_id) ELSE greatest(a.last_id, b.prev_id) END, r.skip_below - 1, 0),
			coalesce(pg_sequence_last_value(`+quoteLiteral(d.db.table("outbox_id"))+`::regclass), 0), (SELECT floor FROM `+d.db.table("retention")+`)
		FROM `+d.db.table("relay")+` AS r
		LEFT JOIN LATERAL (SELECT round, last_id FROM `+link+` WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 ORDER BY n DESC LIMIT 1) AS a ON true
		LEFT JOIN LATERAL (SELECT * FROM `+link+` WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 AND n = a.round LIMIT 1) AS b ON true
		WHERE r.relay = $1`, d.name, allSlots.from, allSlots.to).Scan(&at.lostAt, &at.types, &at.passed, &at.end, &at.floor)
	if errors.Is(err, pgx.ErrNoRows) {
		return at, d.unknown(ctx)
	}
	return at, err
}

// row runs one query of one row. The timeout ends with Scan.
func (d *Desk) row(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, cancel := context.WithTimeout(ctx, d.db.timeout)
	return timedRow{d.db.pool.QueryRow(ctx, sql, args...), cancel}
}

type timedRow struct {
	pgx.Row
	cancel context.CancelFunc
}

func (r timedRow) Scan(into ...any) error {
	defer r.cancel()
	return r.Row.Scan(into...)
}

// measureFor bounds the counting of one plan.
const (
	measureFor  = 5 * time.Second
	measureRows = 50_000 // ids in one query
)

// measure counts what lies in the range, in windows of ids: their plan does not
// depend on statistics.
func (d *Desk) measure(ctx context.Context, m *Move, types []string) error {
	where, args := "", []any{}
	if types != nil {
		where, args = ` AND event_type LIKE ANY ($3::text[])`, []any{typepattern.Like(types)}
	}
	log := d.db.table("outbox")
	countSQL := `SELECT count(*), min(at) FROM ` + log + ` WHERE id > $1 AND id <= $2` + where
	nextSQL := `SELECT id FROM ` + log + ` WHERE id > $1 AND id <= $2 ORDER BY id LIMIT 1`
	start := time.Now()
	for lo := m.From - 1; lo < m.To; {
		if time.Since(start) > measureFor {
			return nil
		}
		hi := min(lo+measureRows, m.To)
		var n int
		var since *time.Time
		err := d.db.read(ctx, countSQL, append([]any{lo, hi}, args...), func(rows pgx.Rows) (bool, error) { return true, rows.Scan(&n, &since) })
		if err != nil {
			return fmt.Errorf("count the events %d to %d: %w", lo+1, hi, err)
		}
		if m.Events += n; since != nil && (m.Since.IsZero() || since.Before(m.Since)) {
			m.Since = *since
		}
		if lo = hi; n > 0 || lo >= m.To {
			continue
		}
		// Over a gap, in one step.
		switch err := d.row(ctx, nextSQL, lo, m.To).Scan(&hi); {
		case err == nil:
			lo = hi - 1
		case errors.Is(err, pgx.ErrNoRows):
			lo = m.To
		default:
			return fmt.Errorf("count the events %d to %d: %w", lo+1, m.To, err)
		}
	}
	m.Counted = true
	return nil
}
