package outbox

import (
	"context"
	"fmt"
	"strconv"
)

// carryOut does what plan has found, under lock's locks.
func (r *rebase) carryOut(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		r.setSequences, r.moveAppendedHere, r.rewriteXids, r.rewritePositions, r.raiseIncarnation,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// setSequences sets them above what they have given out in the other cluster. A
// sequence knows no rollback: if this transaction fails, ids are left out.
func (r *rebase) setSequences(ctx context.Context) error {
	if last := r.report.LastID; last > r.ids.sequence {
		if _, err := r.tx.Exec(ctx, `SELECT setval(`+quoteLiteral(r.db.table("outbox_id"))+`::regclass, $1)`, last); err != nil {
			return err
		}
	}
	requests := quoteLiteral(r.db.table("relay_request_id_seq")) + `::regclass`
	_, err := r.tx.Exec(ctx, `SELECT setval(`+requests+`, m) FROM (SELECT max(id) AS m FROM `+r.db.table("relay_request")+`) AS t
		WHERE m > coalesce(pg_sequence_last_value(`+requests+`), 0)`)
	return err
}

// moveAppendedHere gives what was appended here with ids that positions have passed
// ids above all others, in the same order: nobody has published it, since no relay
// has run here yet.
func (r *rebase) moveAppendedHere(ctx context.Context) error {
	if r.report.Moved == 0 {
		return nil
	}
	tag, err := r.tx.Exec(ctx, `UPDATE `+r.db.table("outbox")+` AS o SET id = $1 + l.k
		FROM unnest($2::bigint[]) WITH ORDINALITY AS l (id, k) WHERE o.id = l.id`, r.ids.highest, r.moving)
	if err == nil && tag.RowsAffected() != r.report.Moved {
		err = fmt.Errorf("%d events have got new ids instead of %d", tag.RowsAffected(), r.report.Moved)
	}
	return err
}

// rewriteXids renumbers the transactions of the log, and of what was taken from it.
// What no position has read is unseen whatever its number was: it may have been
// appended here.
//
// Our own transaction has an xid that is not below the renumbering's limit, and its
// commit waits for the disk. So no crash of the server brings back an xid below the
// limit: the new numbers are used up for good.
func (r *rebase) rewriteXids(ctx context.Context) error {
	log, parked, retention := r.db.table("outbox"), r.db.table("parked"), r.db.table("retention")
	last := fmt.Sprintf("'%d'::xid8", r.xids.last)
	var late []uint64
	for _, x := range r.apart {
		late = append(late, r.xids.xid(x))
	}
	lateSQL, lateArgs := `UPDATE `+retention+` SET late = ARRAY(SELECT (r.n[i])::xid8
		FROM (SELECT $1::text[] AS x, $2::text[] AS n) AS r, generate_subscripts(r.x, 1) AS i
		WHERE r.x[i]::xid8 = ANY (late) ORDER BY 1)`, []any{texts(r.apart), texts(late)}
	if _, err := r.tx.Exec(ctx, lateSQL, lateArgs...); err != nil {
		return err
	}
	if r.xids.same {
		tag, err := r.tx.Exec(ctx, `UPDATE `+log+` SET xid = `+last+` WHERE xid >= $1::text::xid8 OR id > $2 AND xid < $3::text::xid8`,
			strconv.FormatUint(r.xids.limit, 10), r.ids.read, strconv.FormatUint(r.xids.end, 10))
		r.report.Rewritten = tag.RowsAffected()
		return err
	}
	tag, err := r.tx.Exec(ctx, `UPDATE `+log+` SET xid = CASE WHEN id > $2 THEN `+last+` ELSE `+r.xids.sql("$1")+` END`, texts(r.xids.above), r.ids.read)
	if err != nil {
		return err
	}
	r.report.Rewritten = tag.RowsAffected()
	_, err = r.tx.Exec(ctx, `UPDATE `+parked+` SET xid = `+r.xids.sql("$1"), texts(r.xids.above))
	return err
}

// rewritePositions writes for each position a link that holds the same round in this
// cluster's terms, and takes away those with the other's.
func (r *rebase) rewritePositions(ctx context.Context) error {
	link := r.db.table("relay_link")
	recorded := map[string]bool{}
	for i, p := range r.positions {
		prev, snap := r.xids.snapshot(&p.round.prev, r.apart), r.xids.snapshot(&p.round.snap, r.apart)
		if _, err := r.tx.Exec(ctx, `INSERT INTO `+link+` (relay, slot_from, slot_to, n, holder, round, last_id,
				prev_snapshot, prev_id, snapshot, seen_id, upper_id, system_identifier, timeline)
			SELECT $1, $2, $3, $4, $5::uuid, $4, $6, $7::text::pg_snapshot, $8, $9::text::pg_snapshot, $10, $11,
				system_identifier, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) FROM pg_control_system()`,
			p.name, p.slots.from, p.slots.to, p.n+1, r.holder.String(), p.lastID,
			prev.text, p.round.prevID, snap.text, p.round.seenID, p.round.upper); err != nil {
			return err
		}
		if _, err := r.tx.Exec(ctx, `DELETE FROM `+link+` WHERE relay = $1 AND slot_from = $2 AND slot_to = $3 AND n <= $4`,
			p.name, p.slots.from, p.slots.to, p.n); err != nil {
			return err
		}
		// Once per name. Each of its ranges, if it has several, is in the report.
		if recorded[p.name] {
			continue
		}
		recorded[p.name] = true
		c := r.report.Positions[i]
		found := r.report.Found
		if found == "" {
			found = "forced"
		}
		if _, err := r.tx.Exec(ctx, `INSERT INTO `+r.db.table("relay_request")+` (relay, action, requested_by, done_at, outcome)
			VALUES ($1, 'rebase', coalesce(nullif($2, ''), session_user), clock_timestamp(), $3)`, p.name, r.cfg.By,
			fmt.Sprintf("%s; incarnation %d; %d late events and %d others are still to be taken", found, r.report.Incarnation, c.Late, c.Rest)); err != nil {
			return err
		}
	}
	return nil
}

func (r *rebase) raiseIncarnation(ctx context.Context) error {
	_, err := r.tx.Exec(ctx, `UPDATE `+r.db.table("outbox_source")+` SET incarnation = incarnation + 1,
		system_identifier = (SELECT system_identifier FROM pg_control_system()), timeline = substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`)
	return err
}
