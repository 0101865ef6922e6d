package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A chunk is a range of ids, as wide as takes about chunkTime.
const (
	firstChunk = 1000
	mostChunk  = 20_000
	chunkTime  = 100 * time.Millisecond
	// What a transaction of retention may take at most, and wait for the positions.
	chunkTimeout = 2 * time.Second
	lockTimeout  = 500 * time.Millisecond
)

// ground is where a look begins.
type ground struct {
	floor  int64
	late   []uint64 // transactions that may have rows at or below floor
	lastID int64    // the sequence's position, read before a transaction that has ended since drew its xid
}

// look does all that there is to do now. With a lease it is paced by what a Run has
// time for, and ends when the lease does.
func (r *Retention) look(ctx context.Context, l *lease) (report RetentionReport, err error) {
	if err := r.db.checkOrigin(ctx); err != nil { // a fail-over may have happened since
		return report, err
	}
	if err := r.endTheLost(ctx); err != nil {
		return report, err
	}
	held, err := r.db.heldBack(ctx)
	if err != nil {
		return report, err
	}
	report.HeldBy, report.NoReaders = r.holders(held)
	for more := true; more && ctx.Err() == nil; {
		g, err := r.begin(ctx)
		if err != nil {
			return report, err
		}
		more = false
		if report.Floor = g.floor; r.cfg.Keep == Forever {
			break
		}
		if err := r.removeLate(ctx, l, &g, &report); err != nil {
			return report, err
		}
		if more, err = r.removeRest(ctx, l, &g, &report); err != nil {
			return report, err
		}
	}
	return report, r.removeAside(ctx, l, &report)
}

// begin reads where the last look ended. It is one transaction that reads the
// sequence before it draws an xid, as a round's first is: whatever is not visible in
// a later snapshot, and not listed there, has ids above lastID.
func (r *Retention) begin(ctx context.Context) (g ground, err error) {
	var late []string
	err = r.db.write(ctx, false,
		statement{sql: `SELECT coalesce(pg_sequence_last_value(` + quoteLiteral(r.db.table("outbox_id")) + `::regclass), 0)`,
			scan: func(row pgx.Row) error { return row.Scan(&g.lastID) }},
		statement{sql: `UPDATE ` + r.db.table("retention") + ` SET looked_at = clock_timestamp() RETURNING floor, late::text[]`,
			scan: func(row pgx.Row) error { return row.Scan(&g.floor, &late) }})
	if err != nil {
		return g, fmt.Errorf("read what retention has removed: %w", explain(r.db.schema, err))
	}
	g.late, err = xids(late)
	return g, err
}

// holders says who holds back what is older than the window, once per name.
func (r *Retention) holders(all []HeldBack) (held []HeldBack, none bool) {
	none = true
	for _, h := range all {
		lost, holds := !h.LostAt.IsZero(), h.Age > r.cfg.Keep
		none = none && lost
		if lost || holds {
			held = append(held, h)
		}
		if holds && !lost && !r.told[h.Name] {
			r.cfg.Logger.Warn("a position holds the log back: events stay in it beyond the retention window",
				"name", h.Name, "kind", h.Kind, "log_id", h.NextID, "since", h.Since, "ids", h.IDs)
		}
		r.told[h.Name] = holds && !lost
	}
	if none && !r.cfg.WithoutReaders && !r.silent {
		r.cfg.Logger.Warn("nobody reads the log, so nothing leaves it: run a relay, or set RetentionConfig.WithoutReaders")
	}
	r.silent = none
	return held, none
}

// chunksAtOnce bounds for how many chunks late transactions are noted before they are
// looked for: each chunk notes what runs at its time.
const chunksAtOnce = 100

// removeRest removes what lies above floor, chunk by chunk, up to the first event
// that is too young, or that a position is still to come to. more: there may be more
// than chunksAtOnce.
func (r *Retention) removeRest(ctx context.Context, l *lease, g *ground, report *RetentionReport) (more bool, err error) {
	from := g.floor
	for chunks := 0; ctx.Err() == nil && g.floor < g.lastID; chunks++ {
		if chunks == chunksAtOnce {
			return true, nil
		}
		hi := min(from+r.width, g.lastID)
		began := time.Now()
		c, err := r.chunk(ctx, g.floor, hi)
		if r.adapt(err, time.Since(began)) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("remove events %d to %d: %w", g.floor+1, hi, explain(r.db.schema, err))
		}
		report.Removed += c.removed
		if c.floor <= g.floor {
			return false, nil
		}
		g.floor, report.Floor = c.floor, c.floor
		if c.floor < hi {
			return false, nil
		}
		if from = g.floor; c.removed == 0 {
			// A gap. The next chunk begins where this one ended all the same, or what is
			// committed there meanwhile would be passed over.
			if from, err = r.jump(ctx, from, g.lastID); err != nil {
				return false, err
			}
		}
		if ok, err := r.rest(ctx, l, time.Since(began)); !ok || err != nil {
			return false, err
		}
	}
	return false, nil
}

type chunked struct {
	removed int64
	floor   int64 // as it is now
}

// chunk removes what may leave of lo < id <= hi, if lo is still the stored floor, and
// raises that as far as all of it has been looked at. What it left
// there belongs to transactions that ran when some position passed, or still run:
// they are noted with it.
//
// It is one statement, so that rows and floor are those of one snapshot, taken when
// nobody moves a position back: lockPositions stands before it. Bounds on ids are
// what selects rows; the other conditions match no index, so its plan does not depend
// on statistics.
func (r *Retention) chunk(ctx context.Context, lo, hi int64) (c chunked, err error) {
	err = r.write(ctx, statement{sql: r.chunkSQL(), args: []any{lo, hi, r.cfg.Keep.Microseconds(), r.cfg.WithoutReaders},
		scan: func(row pgx.Row) error { return row.Scan(&c.removed, &c.floor) }})
	return c, err
}

func (r *Retention) chunkSQL() string {
	log, state := r.db.table("outbox"), r.db.table("retention")
	return r.db.withSeen() + readers("$4", "$2") + `, young AS MATERIALIZED (
	SELECT min(id) AS id FROM ` + log + ` WHERE id > $1::bigint AND id <= $2::bigint AND at >= now() - $3::bigint * interval '1 microsecond'
), upto AS MATERIALIZED (
	SELECT least($2::bigint, (SELECT min(id) FROM reader), (SELECT id - 1 FROM young)) AS id
	FROM ` + state + ` WHERE floor = $1 AND EXISTS (SELECT FROM reader)
), gone AS (
	DELETE FROM ` + log + ` AS o WHERE o.id > $1 AND o.id <= (SELECT id FROM upto) AND o.id <= $2 AND ` + hasSeen("o.xid") + `
	RETURNING 1
), moved AS (
	UPDATE ` + state + ` SET floor = upto.id, late = ARRAY(
		SELECT unnest(late) UNION SELECT pg_snapshot_xip(r.snapshot) FROM reader AS r)
	FROM upto WHERE upto.id > $1 RETURNING floor
)
SELECT (SELECT count(*) FROM gone), coalesce((SELECT floor FROM moved), $1)`
}

// write runs statements behind lockPositions, in a transaction that is short or fails.
// It need not be durable: whatever is lost with it in a crash of the server is lost
// whole, and what it has read was written before it.
func (r *Retention) write(ctx context.Context, statements ...statement) error {
	timeouts := statement{sql: `SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true)`,
		args: []any{fmt.Sprint(lockTimeout.Milliseconds()), fmt.Sprint(chunkTimeout.Milliseconds())}, rows: 1}
	all := []statement{timeouts, {sql: planForTheEnds, rows: 1}, r.db.lockPositions()}
	return r.db.write(ctx, false, append(all, statements...)...)
}

// adapt learns the next chunk's width from what this one took. again: it was cut off
// for taking too long, and a narrower one may not be.
func (r *Retention) adapt(err error, took time.Duration) (again bool) {
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == codeQueryCanceled && r.width > 1:
		r.width = max(1, r.width/4)
		return true
	case err != nil:
	case took > 2*chunkTime:
		r.width = max(1, r.width/2)
	case took < chunkTime/2:
		r.width = min(2*r.width, mostChunk)
	}
	return false
}

const codeQueryCanceled = "57014"

// rest pauses for as long as the transaction before it took, and says whether to go on.
func (r *Retention) rest(ctx context.Context, l *lease, took time.Duration) (bool, error) {
	sleep(ctx, min(took, time.Second))
	if l == nil || l.left() > l.length/2 {
		return ctx.Err() == nil, nil
	}
	return l.renewInTime(ctx)
}

// jump gives the id before the next row above lo. Nothing has been removed there, so
// no dead entries are walked but those of rollbacks.
func (r *Retention) jump(ctx context.Context, lo, most int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, r.db.timeout)
	defer cancel()
	var next int64
	err := r.db.pool.QueryRow(ctx, `SELECT coalesce((SELECT id - 1 FROM `+r.db.table("outbox")+` WHERE id > $1 AND id <= $2 ORDER BY id LIMIT 1), $2)`, lo, most).Scan(&next)
	if err != nil {
		return lo, fmt.Errorf("look for the next event above %d: %w", lo, explain(r.db.schema, err))
	}
	return next, nil
}
