package outbox

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// copiedPosition is a position in the terms of the cluster that it came from.
type copiedPosition struct {
	position
	name      string
	slots     slotRange
	skipBelow int64
}

// read is the id up to which it knows all rows by their transactions' ids. What lies
// above it has not seen, whatever the numbers say.
func (p *copiedPosition) read() int64 { return max(p.round.upper, p.round.seenID) }

// readPositions reads the latest link of every position, and the one that started
// its round.
func (r *rebase) readPositions(ctx context.Context) error {
	link := r.db.table("relay_link")
	rows, err := r.tx.Query(ctx, `SELECT a.relay, a.slot_from, a.slot_to, a.n, a.holder::text, a.last_id, a.round, coalesce(p.skip_below, 0),
			coalesce(b.prev_snapshot::text, ''), coalesce(b.prev_id, 0), coalesce(b.snapshot::text, ''), coalesce(b.seen_id, 0), coalesce(b.upper_id, 0)
		FROM (SELECT DISTINCT ON (relay, slot_from, slot_to) * FROM `+link+` ORDER BY relay, slot_from, slot_to, n DESC) AS a
		LEFT JOIN `+link+` AS b ON (b.relay, b.slot_from, b.slot_to, b.n) = (a.relay, a.slot_from, a.slot_to, a.round)
		LEFT JOIN `+r.db.table("relay")+` AS p ON p.relay = a.relay
		ORDER BY a.relay, a.slot_from, a.slot_to`)
	if err != nil {
		return err
	}
	r.positions, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p copiedPosition, err error) {
		var holder, prev, snap string
		if err = row.Scan(&p.name, &p.slots.from, &p.slots.to, &p.n, &holder, &p.lastID, &p.round.n, &p.skipBelow,
			&prev, &p.round.prevID, &snap, &p.round.seenID, &p.round.upper); err != nil {
			return p, err
		}
		if snap == "" {
			return p, fmt.Errorf("the position of %q is not whole: link %d is there, but not link %d, on which it rests: copy relay_link again, or delete its rows of that name to let it begin anew", p.name, p.n, p.round.n)
		}
		if p.holder, err = uuid.Parse(holder); err != nil {
			return p, err
		}
		if p.round.prev, err = parseSnapshot(prev); err != nil {
			return p, err
		}
		p.round.snap, err = parseSnapshot(snap)
		return p, err
	})
	return err
}

// idBounds is how far ids have come.
type idBounds struct {
	sequence int64 // where the sequence stands; 0: never called
	highest  int64 // that is known from anywhere
	read     int64 // up to which any position knows rows by their transactions' ids
}

func (r *rebase) readIDs(ctx context.Context) error {
	r.ids = idBounds{}
	for _, p := range r.positions {
		r.ids.read = max(r.ids.read, p.read())
	}
	return r.tx.QueryRow(ctx, `SELECT s, greatest(s, $1::bigint, (SELECT max(id) FROM `+r.db.table("outbox")+`),
			(SELECT max(log_id) FROM `+r.db.table("parked")+`), (SELECT floor FROM `+r.db.table("retention")+`))
		FROM (SELECT coalesce(pg_sequence_last_value(`+quoteLiteral(r.db.table("outbox_id"))+`::regclass), 0) AS s) AS now`,
		r.ids.read).Scan(&r.ids.sequence, &r.ids.highest)
}

// planXids makes the renumbering.
func (r *rebase) planXids(ctx context.Context) error {
	var snapshots []snapshot
	var running []uint64
	for _, p := range r.positions {
		snapshots = append(snapshots, p.round.prev, p.round.snap)
		running = append(append(running, p.round.prev.xip...), p.round.snap.xip...)
	}
	var apart []string
	var limit, next int64
	err := r.tx.QueryRow(ctx, `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
			ARRAY(SELECT DISTINCT xid FROM `+r.db.table("outbox")+` WHERE xid = ANY ($1::text[]::xid8[] || (SELECT late FROM `+r.db.table("retention")+`)))::text[]`,
		texts(running)).Scan(&limit, &next, &apart)
	if err != nil {
		return err
	}
	r.apart = make([]uint64, len(apart))
	for i, x := range apart {
		if r.apart[i], err = strconv.ParseUint(x, 10, 64); err != nil {
			return err
		}
	}
	slices.Sort(r.apart)
	var ok bool
	if r.xids, ok = newRenumbering(snapshots, r.apart, uint64(limit)); !ok {
		return fmt.Errorf("this cluster has given out transaction ids up to %d, %d are needed to stand for those of the other: use some up, by DO $$ BEGIN FOR i IN 1..%d LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$, and try again",
			limit, r.xids.last, r.xids.last)
	}
	return r.planMoves(ctx, next)
}

// planMoves finds the events that were appended here with ids that positions have
// passed in the other cluster: after a switch to a logical replica whose sequence
// began anew, say. If there are such, all that was appended here moves.
//
// It is told by what can only be so for them. The id is one that this cluster's
// sequence has given out. The transaction is not older than the table is here. And
// the tuple's xmin is that transaction, or a part of it that began later, so that no
// other transaction's rows have it; what was copied here has the xmin of the copy.
// A row from elsewhere that looks like this by chance is published again.
func (r *rebase) planMoves(ctx context.Context, next int64) error {
	r.moving, r.report.Moved = []int64{}, 0 // nil would be NULL
	if *r.origin.log == r.origin.here && r.origin.links == nil {
		return nil // all of it was appended here
	}
	log := r.db.table("outbox")
	// The upper half of an xmin, which has 32 bits, is that of the highest number that
	// is not above next.
	const full = `($1::bigint - (($1::bigint - xmin::text::bigint) & 4294967295))::text::xid8`
	rows, err := r.tx.Query(ctx, `SELECT id FROM (
			SELECT id, xid, `+full+` AS inserted, min(xid) OVER same = max(xid) OVER same AS alone
			FROM `+log+` WINDOW same AS (PARTITION BY xmin::text)) AS o
		WHERE id <= $2 AND xid >= (SELECT `+full+` FROM pg_attribute WHERE attrelid = $3::text::regclass AND attnum = -1)
			AND (xid = inserted OR xid < inserted AND alone)
		ORDER BY id`, next, r.ids.sequence, log)
	if err != nil {
		return err
	}
	here, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err == nil && len(here) > 0 && here[0] <= r.ids.read {
		r.moving, r.report.Moved = here, int64(len(here))
	}
	return err
}

// countUnsettled says for each position what it has not settled, in the terms of the
// cluster that it came from.
func (r *rebase) countUnsettled(ctx context.Context) error {
	for _, p := range r.positions {
		// What a snapshot taken after that id was read has not seen: see round.
		unseen := func(snapshot, id, running string) string {
			return `CASE WHEN id > ` + id + ` THEN NOT pg_visible_in_snapshot(xid, ` + snapshot + `::text::pg_snapshot) ELSE xid = ANY (` + running + `::text[]::xid8[]) END`
		}
		behind := p.read()
		if !p.finished() {
			behind = max(p.lastID, p.round.prevID)
		}
		c := RebasedPosition{Name: p.name, SlotFrom: p.slots.from, SlotTo: p.slots.to}
		err := r.tx.QueryRow(ctx, `SELECT count(*) FILTER (WHERE id <= $12), count(*) FILTER (WHERE id > $12), coalesce(min(id), 0)
			FROM `+r.db.table("outbox")+` AS outbox
			WHERE (id > $1 OR `+unseen("$2", "$3", "$4")+` OR NOT $13::boolean AND id > $5 AND `+unseen("$6", "$7", "$8")+`)
			AND slot BETWEEN $9 AND $10 AND id >= $11 AND id <> ALL ($14::bigint[])`,
			p.read(), p.round.snap.text, p.round.seenID, texts(p.round.snap.xip),
			p.lastID, p.round.prev.text, p.round.prevID, texts(p.round.prev.xip), p.slots.from, p.slots.to, p.skipBelow,
			behind, p.finished(), r.moving).
			Scan(&c.Late, &c.Rest, &c.FirstID)
		if err != nil {
			return err
		}
		c.Rest += r.report.Moved
		if c.FirstID == 0 && c.Rest > 0 {
			c.FirstID = r.ids.highest + 1
		}
		r.report.Positions = append(r.report.Positions, c)
	}
	return nil
}
