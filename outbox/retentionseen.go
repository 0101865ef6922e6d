package outbox

// withSeen begins a statement on what all positions together still need. seen has a
// row for each position that counts: the snapshot of all that it has passed for good
// (P of an unfinished round, T of a finished one), and the id up to which whatever is
// not visible there belongs to a transaction that ran then, and is listed in it (L, or
// L'; see round). Nothing may leave that is not visible in every one of them.
//
// A position whose round's link is missing counts as one that has seen nothing. Those
// that were ended (lost) do not count.
//
// Of a position that begins at a snapshot that has seen nothing, a new or a rewound
// one, the id says nothing: no transaction is listed there.
func (d *database) withSeen() string {
	link := d.table("relay_link")
	return `WITH RECURSIVE ` + latestLinks(link) + `, position AS (
	SELECT a.relay, a.slot_from, a.slot_to, a.n, a.round, a.last_id, r.kind, r.lost_at,
		coalesce(CASE WHEN a.last_id = b.upper_id THEN b.snapshot ELSE b.prev_snapshot END, '1:1:') AS snapshot,
		coalesce(CASE WHEN a.last_id = b.upper_id THEN b.seen_id ELSE b.prev_id END, 0) AS passed
	FROM latest AS a
	LEFT JOIN ` + link + ` AS b ON b.relay = a.relay AND b.slot_from = a.slot_from AND b.slot_to = a.slot_to AND b.n = a.round
	LEFT JOIN ` + d.table("relay") + ` AS r ON r.relay = a.relay
), seen AS MATERIALIZED (
	SELECT snapshot, CASE WHEN snapshot::text = '1:1:' THEN 0 ELSE passed END AS id FROM position WHERE lost_at IS NULL
)`
}

// latestLinks follows WITH RECURSIVE: latest has the latest link of each position. The
// chains are found from their ends, downwards, so that no dead link is walked: the
// highest link of all, then the highest below that chain, and so on.
func latestLinks(link string) string {
	return `latest AS (
	(SELECT relay, slot_from, slot_to, n, round, last_id FROM ` + link + `
		ORDER BY relay DESC, slot_from DESC, slot_to DESC, n DESC LIMIT 1)
	UNION ALL
	SELECT b.* FROM latest AS a CROSS JOIN LATERAL (
		SELECT relay, slot_from, slot_to, n, round, last_id FROM ` + link + `
		WHERE (relay, slot_from, slot_to) < (a.relay, a.slot_from, a.slot_to)
		ORDER BY relay DESC, slot_from DESC, slot_to DESC, n DESC LIMIT 1) AS b
)`
}

// readers follows withSeen: reader is seen or, where retention goes by age alone and
// there is no position, the present: what has ended by now, of the ids up to upTo,
// which was the sequence's position before a transaction that has ended.
func readers(withoutReaders, upTo string) string {
	return `, reader AS MATERIALIZED (
	SELECT snapshot, id FROM seen
	UNION ALL SELECT pg_current_snapshot(), ` + upTo + `::bigint WHERE ` + withoutReaders + `::boolean AND NOT EXISTS (SELECT FROM seen)
)`
}

// hasSeen is the condition that every reader has passed the transaction for good.
func hasSeen(xid string) string {
	return `EXISTS (SELECT FROM reader) AND NOT EXISTS (SELECT FROM reader AS r WHERE NOT pg_visible_in_snapshot(` + xid + `, r.snapshot))`
}

// planForTheEnds has the planner take the indexes whatever the statistics say: after
// a burst, or without statistics, it would read whole tables for the few rows at one end.
const planForTheEnds = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true)`
