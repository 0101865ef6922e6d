-- Removes what 0001_outbox.sql has created, and nothing else. It refuses as long as
-- that would lose something: events that are not published everywhere, unless
-- SET postbus.discard_events = 'on' was said in this session; what consumers have
-- handled, unless SET postbus.forget_handled = 'on' was.
-- One block, so that it is done whole or not at all, whatever runs it.
DO $postbus$
DECLARE
    most     CONSTANT integer := 1000; -- counting further tells nobody more
    here     CONSTANT bigint  := (SELECT system_identifier FROM pg_control_system());
    losses   text[] := '{}';
    position record;
    found    integer := 0;
BEGIN
    -- Whoever waits for these locks keeps every append waiting behind it.
    PERFORM set_config('lock_timeout', '2s', true);
    BEGIN
        LOCK TABLE {schema}.outbox, {schema}.relay, {schema}.relay_lease, {schema}.relay_link, {schema}.retention, {schema}.parked,
            {schema}.relay_request, {schema}.inbox, {schema}.outbox_source IN ACCESS EXCLUSIVE MODE;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'a transaction that uses the tables was open for more than 2 s: stop the programs that use them, and try again'
            USING ERRCODE = 'lock_not_available';
    END;

    IF coalesce(current_setting('postbus.discard_events', true), '') <> 'on' THEN
        -- What each position has seen for good; nothing, if it was written in another cluster.
        FOR position IN
            SELECT last.relay, CASE WHEN start.system_identifier IS DISTINCT FROM here THEN pg_snapshot '1:1:'
                                    WHEN last.last_id = start.upper_id THEN start.snapshot
                                    ELSE start.prev_snapshot END AS seen
            FROM (SELECT DISTINCT ON (relay, slot_from, slot_to) relay, slot_from, slot_to, round, last_id
                  FROM {schema}.relay_link ORDER BY relay, slot_from, slot_to, n DESC) AS last
            JOIN {schema}.relay_link AS start USING (relay, slot_from, slot_to)
            WHERE start.n = last.round
              AND NOT EXISTS (SELECT FROM {schema}.relay AS r WHERE r.relay = last.relay AND r.lost_at IS NOT NULL)
            ORDER BY last.relay
        LOOP
            found := found + 1;
            losses := losses || (
                SELECT format('%s has not settled %s', quote_ident(position.relay), CASE WHEN count(*) < most THEN count(*)::text ELSE most || ' or more' END)
                FROM (SELECT FROM {schema}.outbox
                      WHERE xid >= pg_snapshot_xmin(position.seen) AND NOT pg_visible_in_snapshot(xid, position.seen) LIMIT most) AS unseen
                HAVING count(*) > 0);
        END LOOP;
        IF found = 0 AND EXISTS (SELECT FROM {schema}.outbox) THEN
            losses := losses || text 'no relay has ever read the log, and it is not empty';
        END IF;
        losses := losses || (SELECT format('%s are parked', count(*)) FROM {schema}.parked WHERE state <> 'discarded' HAVING count(*) > 0);
        losses := array_remove(losses, NULL);
        IF cardinality(losses) > 0 THEN
            RAISE EXCEPTION 'something would be lost: events (%): let the relays finish, settle what is parked, or say that the events may go (migrations.DiscardEvents; in SQL: SET postbus.discard_events = ''on'')',
                array_to_string(losses, '; ') USING ERRCODE = 'PB001';
        END IF;
    END IF;
    IF coalesce(current_setting('postbus.forget_handled', true), '') <> 'on' AND EXISTS (SELECT FROM {schema}.inbox) THEN
        RAISE EXCEPTION 'something would be lost: what consumers have handled (inbox), so that it would take effect again when it is delivered again: delete the rows once nothing can be, or say that they may go (migrations.ForgetHandled; in SQL: SET postbus.forget_handled = ''on'')'
            USING ERRCODE = 'PB001';
    END IF;

    DROP TABLE {schema}.inbox, {schema}.relay_request, {schema}.parked, {schema}.retention, {schema}.relay_lease,
        {schema}.relay_link, {schema}.relay, {schema}.outbox, {schema}.outbox_source; -- the sequence goes with the log, which owns it
END
$postbus$;
