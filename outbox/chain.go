package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// slotRange is the part of the keys that a position covers. Both ends belong to it.
type slotRange struct{ from, to int16 }

var allSlots = slotRange{0, Slots - 1}

// chain is the position of one relay over one slot range, as its holder sees it: a
// row per step, each built on the one before. Writing link n+1 takes having seen
// link n, so nobody writes on top of what they have not seen: not a former holder
// that wakes up, and not the holder itself after a commit whose reply was lost,
// because the insert of the same link waits for that transaction to end. Link n
// must also be the very one that was seen: of the same holder, not another of the
// same number written after a crash of the server lost the first.
//
// It is used by one goroutine. After any error it must be loaded again.
type chain struct {
	db     *database
	who    owner
	slots  slotRange
	holder uuid.UUID
	pos    position

	// fresh is the sequence's position as read in the transaction that finished the
	// latest round, before that drew its xid: the next round's L'. It spares the
	// next round a transaction, and is gone with the first error.
	fresh   int64
	isFresh bool

	insertSQL string
	startSQL  string
	newSQL    string // startSQL, if there is anything new
	rewindSQL string
	lastIDSQL string
	loadSQL   string
	pruneSQL  string
	pruned    int64 // links below are gone
}

func newChain(db *database, who owner, slots slotRange, holder uuid.UUID) *chain {
	link, seq := db.table("relay_link"), quoteLiteral(db.table("outbox_id"))
	// The number of the next link is NULL, which the column refuses, unless the link
	// it is built on is there, of the holder it was read from: a crash of the server
	// loses links that were not durable, and their numbers are then used again.
	next := `CASE WHEN $4::bigint = 1 THEN 1 ELSE (SELECT n + 1 FROM ` + link + `
		WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 AND n = $4::bigint - 1 AND holder = $8::uuid) END`
	// T and U in one statement, whose snapshot precedes the function's read.
	start := func(condition string) string {
		return `INSERT INTO ` + link + ` (relay, slot_from, slot_to, n, holder, round, last_id,
				prev_snapshot, prev_id, snapshot, seen_id, upper_id, system_identifier, timeline)
			SELECT $1, $2, $3, ` + next + `, $5::uuid, $4::bigint, CASE WHEN $6 THEN u ELSE 0 END,
				$7::text::pg_snapshot, $9, t, $10, u, sys, line
			FROM (SELECT pg_current_snapshot() AS t, coalesce(pg_sequence_last_value(` + seq + `::regclass), 0) AS u,
				(SELECT system_identifier FROM pg_control_system()) AS sys,
				substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS line) AS now` + condition + `
			RETURNING snapshot::text, upper_id`
	}
	return &chain{
		db: db, who: who, slots: slots, holder: holder,

		// pg_sequence_last_value, not SELECT last_value: that reads the page without
		// its lock and may see up to 32 too much, which loses rows. NULL: never called.
		lastIDSQL: `SELECT coalesce(pg_sequence_last_value(` + seq + `::regclass), 0)`,

		insertSQL: `INSERT INTO ` + link + ` (relay, slot_from, slot_to, n, holder, round, last_id) VALUES ($1, $2, $3, ` + next + `, $5::uuid, $6, $7)`,

		startSQL: start(""),
		newSQL:   start(` WHERE u > $11::bigint AND u - $10::bigint <= ` + strconv.Itoa(farBehind)),

		rewindSQL: `INSERT INTO ` + link + ` (relay, slot_from, slot_to, n, holder, round, last_id,
				prev_snapshot, prev_id, snapshot, seen_id, upper_id, system_identifier, timeline)
			SELECT $1, $2, $3, ` + next + `, $5::uuid, $4::bigint, 0, '1:1:', $6, $7::text::pg_snapshot, $9, $10,
				(SELECT system_identifier FROM pg_control_system()), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`,

		// The latest link, and the one that started its round. The LIMIT on the latter
		// keeps the planner from going through all links for the one that the former
		// names, as it does without statistics.
		loadSQL: `SELECT a.n, a.holder::text, a.last_id, b.n, b.prev_snapshot::text, b.prev_id, b.snapshot::text, b.seen_id, b.upper_id
			FROM (SELECT n, holder, last_id, round FROM ` + link + ` WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 ORDER BY n DESC LIMIT 1) AS a
			CROSS JOIN LATERAL (SELECT * FROM ` + link + ` WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 AND n = a.round LIMIT 1) AS b`,

		pruneSQL: `DELETE FROM ` + link + ` WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 AND n >= $4 AND n < $5`,
	}
}

// load reads the latest link. found is false for a relay that has never run.
func (c *chain) load(ctx context.Context) (found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.db.timeout)
	defer cancel()
	c.isFresh = false
	var prev, snap, holder string
	p := position{}
	err = c.db.pool.QueryRow(ctx, c.loadSQL, c.who.name, c.slots.from, c.slots.to).
		Scan(&p.n, &holder, &p.lastID, &p.round.n, &prev, &p.round.prevID, &snap, &p.round.seenID, &p.round.upper)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		c.pos = position{round: firstRound()}
		return false, nil
	case err != nil:
		return false, fmt.Errorf("load the position of %s: %w", c.who, explain(c.db.schema, err))
	}
	if p.holder, err = uuid.Parse(holder); err != nil {
		return false, fmt.Errorf("load the position of %s: %w", c.who, err)
	}
	if p.round.prev, err = parseSnapshot(prev); err != nil {
		return false, fmt.Errorf("load the position of %s: %w", c.who, err)
	}
	if p.round.snap, err = parseSnapshot(snap); err != nil {
		return false, fmt.Errorf("load the position of %s: %w", c.who, err)
	}
	p.round.known = time.Now()
	c.pos = p
	return true, nil
}

// create writes the first link of a relay that has never run: a finished round
// that has seen nothing, or everything up to now.
func (c *chain) create(ctx context.Context, from StartAt) error {
	register := c.db.register(c.who)
	if from == FromNow {
		// What has the xid is no link: one that stood alone after a crash would be a
		// position at the beginning.
		var seen int64
		if err := c.write(ctx, true, c.readLastID(&seen), c.touchLease()); err != nil {
			return err
		}
		return c.begin(ctx, seen, true, c.db.lockPositions(), register)
	}
	first := firstRound()
	if at, ok := from.time(); ok {
		id, err := c.db.idAt(ctx, at)
		if err != nil {
			return fmt.Errorf("find where %s is to begin: %w", c.who, err)
		}
		first.seenID = id - 1 // the next round reads what lies above
	}
	if err := c.write(ctx, true, c.db.lockPositions(), register, c.firstLink(first.seenID)); err != nil {
		return err
	}
	c.pos = position{n: 1, holder: c.holder, round: first}
	return nil
}

// touchLease writes without changing what the lease says.
func (c *chain) touchLease() statement {
	return statement{sql: `INSERT INTO ` + c.db.table("relay_lease") + ` AS l (relay, slot_from, slot_to, holder, expires)
			VALUES ($1, $2, $3, $4::uuid, '-infinity')
			ON CONFLICT (relay, slot_from, slot_to) DO UPDATE SET expires = l.expires`,
		args: []any{c.who.name, c.slots.from, c.slots.to, c.holder.String()}, rows: 1}
}

func (c *chain) firstLink(seenID int64) statement {
	return statement{sql: `INSERT INTO ` + c.db.table("relay_link") + ` (relay, slot_from, slot_to, n, holder, round, last_id,
			prev_snapshot, prev_id, snapshot, seen_id, upper_id)
			VALUES ($1, $2, $3, 1, $4::uuid, 1, 0, '1:1:', 0, '1:1:', $5, 0)`,
		args: []any{c.who.name, c.slots.from, c.slots.to, c.holder.String(), seenID}, rows: 1}
}

// advance writes the next link, to lastID of the present round, together with
// what else happens at this step. Only a link that moves nothing but lastID may
// be written without durability: a crash of the server then repeats a little more.
func (c *chain) advance(ctx context.Context, lastID int64, durable bool, also ...statement) error {
	if err := c.write(ctx, durable, append(also, c.link(lastID))...); err != nil {
		return err
	}
	c.moved(lastID)
	return nil
}

// finish writes the round's last link and reads, before its transaction has an
// xid, what the next round will need as L'.
func (c *chain) finish(ctx context.Context, also ...statement) error {
	var seen int64
	steps := append([]statement{c.readLastID(&seen)}, also...)
	if err := c.write(ctx, true, append(steps, c.link(c.pos.round.upper))...); err != nil {
		return err
	}
	c.moved(c.pos.round.upper)
	c.fresh, c.isFresh = seen, true
	return nil
}

// farBehind is how many ids may lie between L' and U without a thought: the round
// after reads them once more.
const farBehind = 1000

// start begins the next round: all the log has now that the finished one had not
// seen. lastID is the sequence's position as last seen by anybody: if L' is at
// hand but lies far behind it, the round after would read all in between again.
func (c *chain) start(ctx context.Context, lastID int64) error {
	if !c.isFresh || lastID-c.fresh > farBehind {
		if err := c.refresh(ctx); err != nil {
			return err
		}
	}
	return c.begin(ctx, c.fresh, false)
}

// startIfNew is start where L' is at hand and there is something new, a little;
// else it has written nothing.
func (c *chain) startIfNew(ctx context.Context) (started bool, err error) {
	if !c.isFresh {
		return false, nil
	}
	return c.beginBy(ctx, c.newSQL, c.fresh, false, nil, c.pos.round.upper)
}

// refresh is steps 1 and 2 of a round: read L' without an xid, then draw one,
// write, commit.
func (c *chain) refresh(ctx context.Context) error {
	var seen int64
	if err := c.write(ctx, true, c.readLastID(&seen), c.link(c.pos.lastID)); err != nil {
		return err
	}
	c.moved(c.pos.lastID)
	c.fresh, c.isFresh = seen, true
	return nil
}

// begin is steps 3 and 4: T and U, and the link that holds them.
func (c *chain) begin(ctx context.Context, seen int64, finished bool, before ...statement) error {
	_, err := c.beginBy(ctx, c.startSQL, seen, finished, before)
	return err
}

// beginBy begins a round by a statement that may find that there is none to begin.
func (c *chain) beginBy(ctx context.Context, sql string, seen int64, finished bool, before []statement, more ...any) (begun bool, err error) {
	p := c.pos
	next := round{n: p.n + 1, prev: p.round.snap, prevID: p.round.seenID, seenID: seen}
	var snap string
	err = c.write(ctx, true, append(before, statement{sql: sql,
		args: append([]any{c.who.name, c.slots.from, c.slots.to, next.n, c.holder.String(), finished, next.prev.text, p.holder.String(), next.prevID, next.seenID}, more...),
		scan: func(row pgx.Row) error {
			err := row.Scan(&snap, &next.upper)
			if begun = err == nil; len(more) > 0 && errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			return err
		}})...)
	if err != nil || !begun {
		return false, err
	}
	if next.snap, err = parseSnapshot(snap); err != nil {
		return false, err
	}
	c.isFresh = false
	next.known = time.Now()
	c.pos = position{n: next.n, holder: c.holder, round: next}
	if finished {
		c.pos.lastID = next.upper
	}
	return true, nil
}

func (c *chain) link(lastID int64) statement {
	return statement{sql: c.insertSQL, rows: 1,
		args: []any{c.who.name, c.slots.from, c.slots.to, c.pos.n + 1, c.holder.String(), c.pos.round.n, lastID, c.pos.holder.String()}}
}

func (c *chain) readLastID(into *int64) statement {
	return statement{sql: c.lastIDSQL, scan: func(row pgx.Row) error { return row.Scan(into) }}
}

// write runs one transaction that holds a link.
func (c *chain) write(ctx context.Context, durable bool, steps ...statement) error {
	return c.failed(c.db.write(ctx, durable, steps...))
}

// failed says what an error of a transaction with the next link means.
func (c *chain) failed(err error) error {
	if err == nil {
		return nil
	}
	c.isFresh = false
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.TableName == "relay_link" &&
		(pg.Code == codeUniqueViolation && pg.ConstraintName == "relay_link_pkey" || pg.Code == codeNotNull && pg.ColumnName == "n") {
		return fmt.Errorf("link %d of %s: %w: %w", c.pos.n+1, c.who, errFenced, err)
	}
	return fmt.Errorf("link %d of %s: %w", c.pos.n+1, c.who, explain(c.db.schema, err))
}

// moved notes that the next link, to lastID, is committed.
func (c *chain) moved(lastID int64) {
	c.pos.n, c.pos.holder = c.pos.n+1, c.holder
	c.pos.lastID = lastID
}

// Links are pruned in ranges with a remembered lower bound, or each prune would
// walk the dead entries of those before.
const (
	keepLinks   = 200
	pruneEvery  = 2000
	pruneAtOnce = 20_000
)

// prune removes links that no position rests on any more.
func (c *chain) prune(ctx context.Context) error {
	below := min(c.pos.round.n, c.pos.n-keepLinks)
	if below-c.pruned < pruneEvery {
		return nil
	}
	for c.pruned < below { // a long round of small transactions leaves very many
		to := min(c.pruned+pruneAtOnce, below)
		if err := c.pruneUpTo(ctx, to); err != nil {
			return err
		}
		c.pruned = to
	}
	return nil
}

func (c *chain) pruneUpTo(ctx context.Context, below int64) error {
	ctx, cancel := context.WithTimeout(ctx, c.db.timeout)
	defer cancel()
	if _, err := c.db.pool.Exec(ctx, c.pruneSQL, c.who.name, c.slots.from, c.slots.to, c.pruned, below); err != nil {
		return fmt.Errorf("prune the links of %s below %d: %w", c.who, below, err)
	}
	return nil
}
