package outbox

// The statements of ReadStats, one for all relays each. None scans the log: what
// they read of it is found by probes of an index, one row each.

// A relay has its row since its first Run; its lease comes a moment earlier.
const named = `(SELECT relay FROM {relay}
	UNION SELECT l.relay FROM {relay_lease} AS l WHERE l.relay <> '` + retentionName + `' AND slot_from = 0 AND slot_to = 255
		AND (expires > clock_timestamp() OR EXISTS (SELECT FROM {relay_link} AS k WHERE k.relay = l.relay AND k.slot_from = 0 AND k.slot_to = 255)))`

// The latest link of each, and the one that began its round. The LIMIT on the latter
// keeps the planner from looking at all links for the one that the former names.
const positions = `(SELECT name.relay, a.n, a.at, a.last_id, a.round, b.at AS round_at, a.last_id <> b.upper_id AS in_round,
		b.prev_snapshot, b.prev_id, b.snapshot, b.seen_id, b.upper_id,
		coalesce((SELECT skip_below FROM {relay} AS r WHERE r.relay = name.relay), 0) - 1 AS skipped
	FROM {named} AS name
	CROSS JOIN LATERAL (SELECT n, at, last_id, round FROM {relay_link} AS k
		WHERE k.relay = name.relay AND k.slot_from = 0 AND k.slot_to = 255 ORDER BY n DESC LIMIT 1) AS a
	CROSS JOIN LATERAL (SELECT * FROM {relay_link} AS k
		WHERE k.relay = name.relay AND k.slot_from = 0 AND k.slot_to = 255 AND k.n = a.round LIMIT 1) AS b)`

// reltuples is the server's own estimate; counting would read the log. The oldest row
// is looked for above what retention has removed, or the probe would walk the dead
// entries of the index.
const logStats = `SELECT clock_timestamp(),
		CASE WHEN has_sequence_privilege({'outbox_id'}, 'USAGE, SELECT') THEN coalesce(pg_sequence_last_value({'outbox_id'}::regclass), 0) END,
		retention.floor, retention.looked_at, oldest.id, oldest.at, greatest(c.reltuples, -1)::bigint, pg_total_relation_size(c.oid)
	FROM pg_class AS c CROSS JOIN {retention} AS retention
	LEFT JOIN LATERAL (SELECT id, at FROM {outbox} WHERE id > retention.floor ORDER BY id LIMIT 1) AS oldest ON true
	WHERE c.oid = {'outbox'}::regclass`

// When it was paused is told by the request that did it, if that is among the last
// 10,000 of all and has not been deleted.
const relayStats = `SELECT name.relay, coalesce(r.kind, 'relay'), r.created_at, coalesce(r.paused, false),
		CASE WHEN r.paused THEN (SELECT q.done_at FROM {relay_request} AS q
			WHERE q.id > (SELECT max(id) FROM {relay_request}) - 10000 AND q.relay = r.relay AND q.action = 'pause' AND q.done_at IS NOT NULL
			ORDER BY q.id DESC LIMIT 1) END,
		r.rate, r.types, coalesce(r.skip_below, 0), r.lost_at,
		l.holder::text, CASE WHEN isfinite(l.expires) THEN l.expires END
	FROM {named} AS name
	LEFT JOIN {relay} AS r ON r.relay = name.relay
	LEFT JOIN {relay_lease} AS l ON l.relay = name.relay AND l.slot_from = 0 AND l.slot_to = 255`

// The numbers of the links that are kept have no gaps: they are pruned from below. The
// lowest is looked for from 10,000 below the latest on, which bounds the dead entries
// that the probe may meet.
// How fast a position moves: what each of the last 100 links has passed above the
// link before it and above the late events of its round; nothing for the link that
// begins a round, which rewinds and skips may do anywhere.
const positionStats = `SELECT p.relay, p.n, p.at,
		p.n + 1 - (SELECT k.n FROM {relay_link} AS k WHERE k.relay = p.relay AND k.slot_from = 0 AND k.slot_to = 255 AND k.n > p.n - 10000 ORDER BY k.n LIMIT 1),
		p.round, p.round_at, p.in_round, p.last_id, p.upper_id, CASE WHEN p.in_round THEN greatest(p.last_id, p.prev_id) ELSE p.upper_id END,
		coalesce(m.seconds, 0), coalesce(m.ids, 0), coalesce(m.moved, false)
	FROM {positions} AS p
	LEFT JOIN LATERAL (
		SELECT least(60, extract(epoch FROM clock_timestamp() - min(at)))::double precision AS seconds,
			sum(ids) FILTER (WHERE at > clock_timestamp() - interval '1 minute')::bigint AS ids,
			bool_or(last_id > was) FILTER (WHERE n > round AND at > clock_timestamp() - interval '1 minute') AS moved
		FROM (
			SELECT n, round, last_id, at, was, CASE WHEN n > round AND was IS NOT NULL THEN greatest(last_id - greatest(was, late), 0) ELSE 0 END AS ids
			FROM (SELECT n, round, last_id, at, lag(last_id) OVER in_round AS was, max(prev_id) OVER in_round AS late
				FROM {relay_link} AS k
				WHERE k.relay = p.relay AND k.slot_from = 0 AND k.slot_to = 255 AND k.n > p.n - 100
				WINDOW in_round AS (PARTITION BY round ORDER BY n)) AS link
		) AS step) AS m ON true`

// The oldest event that is committed and that the position has not passed: of an
// unfinished round, what lies above its last id and was not seen by the round
// before, and its late part; of the next round, what this one has not seen, and what
// is late to it by now.
//
// Rows that a snapshot has seen above the sequence's position of its own round lie
// close to it, so that a probe that steps over them ends soon. The late ones of each
// transaction are found by one probe of (xid, id), whose order no other index has: as
// a condition on xid and a bound on id it would sooner or later be a walk along the
// primary key, and a transaction of a million rows costs one row this way.
const unpublishedStats = `WITH p AS MATERIALIZED (SELECT * FROM {positions} AS position), late AS (
		SELECT p.relay, x.xid, greatest(p.last_id, p.skipped) AS above, p.prev_id AS up_to FROM p CROSS JOIN LATERAL pg_snapshot_xip(p.prev_snapshot) AS x (xid)
		WHERE p.in_round AND p.last_id < p.prev_id AND pg_visible_in_snapshot(x.xid, p.snapshot)
		UNION ALL
		SELECT p.relay, x.xid, greatest(0, p.skipped), p.seen_id FROM p CROSS JOIN LATERAL pg_snapshot_xip(p.snapshot) AS x (xid)
		WHERE pg_visible_in_snapshot(x.xid, pg_current_snapshot())
	), found AS (
		SELECT p.relay, o.id, o.at, 0 AS late FROM p
		CROSS JOIN LATERAL (SELECT id, at FROM {outbox}
			WHERE id > greatest(p.last_id, p.prev_id, p.skipped) AND NOT pg_visible_in_snapshot(xid, p.prev_snapshot) ORDER BY id LIMIT 1) AS o
		WHERE p.in_round
		UNION ALL
		SELECT p.relay, o.id, o.at, 0 FROM p
		CROSS JOIN LATERAL (SELECT id, at FROM {outbox}
			WHERE id > greatest(p.seen_id, p.skipped) AND NOT pg_visible_in_snapshot(xid, p.snapshot) ORDER BY id LIMIT 1) AS o
		UNION ALL
		SELECT l.relay, o.id, o.at, 1 FROM late AS l
		CROSS JOIN LATERAL (SELECT id, at FROM {outbox} WHERE (xid, id) > (l.xid, l.above) AND (xid, id) <= (l.xid, l.up_to) ORDER BY xid, id LIMIT 1) AS o
	)
	SELECT relay, min(at), (array_agg(id ORDER BY at, id))[1], sum(late)::int FROM found GROUP BY relay`

// $1 rows of each relay are looked at, in the order of the primary key; $3: with
// those that are discarded.
const parkedStats = `WITH by_key AS (
		SELECT name.relay, p.topic, p.partition_key, bool_or(state <> 'discarded') AS blocked,
			count(*) FILTER (WHERE state = 'retrying') AS rn, sum(bytes) FILTER (WHERE state = 'retrying') AS rb, min(parked_at) FILTER (WHERE state = 'retrying') AS ra,
			count(*) FILTER (WHERE state = 'waiting') AS wn, sum(bytes) FILTER (WHERE state = 'waiting') AS wb, min(parked_at) FILTER (WHERE state = 'waiting') AS wa,
			count(*) FILTER (WHERE state = 'given_up') AS gn, sum(bytes) FILTER (WHERE state = 'given_up') AS gb, min(parked_at) FILTER (WHERE state = 'given_up') AS ga,
			count(*) FILTER (WHERE state = 'discarded') AS dn, sum(bytes) FILTER (WHERE state = 'discarded') AS db, min(parked_at) FILTER (WHERE state = 'discarded') AS da
		FROM {named} AS name
		CROSS JOIN LATERAL (SELECT state, topic, partition_key, parked_at, octet_length(payload) AS bytes FROM {parked} AS k
			WHERE k.relay = name.relay AND ($3 OR k.state <> 'discarded') ORDER BY k.log_id LIMIT $1) AS p
		GROUP BY name.relay, p.topic, p.partition_key
	)
	SELECT relay, count(*) FILTER (WHERE blocked), sum(rn + wn + gn + dn) > $2::bigint,
		sum(rn)::bigint, coalesce(sum(rb), 0)::bigint, min(ra), sum(wn)::bigint, coalesce(sum(wb), 0)::bigint, min(wa),
		sum(gn)::bigint, coalesce(sum(gb), 0)::bigint, min(ga), sum(dn)::bigint, coalesce(sum(db), 0)::bigint, min(da)
	FROM by_key GROUP BY relay`

const requestStats = `SELECT relay, count(*), min(requested_at) FROM {relay_request} WHERE done_at IS NULL GROUP BY relay`
