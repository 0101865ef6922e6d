-- The log, the relays' positions and leases, parked events, requests, the inbox.
-- {schema} is replaced by the quoted schema name.

-- Which log this is. One row. The incarnation grows when ids may be issued again
-- (fail-over to a new timeline, restore), so that consumers can tell old from new.
CREATE TABLE {schema}.outbox_source (
    one               boolean PRIMARY KEY DEFAULT true CHECK (one),
    source            uuid    NOT NULL DEFAULT gen_random_uuid(),
    incarnation       bigint  NOT NULL DEFAULT 1,
    system_identifier bigint  NOT NULL,
    timeline          text    NOT NULL
);
INSERT INTO {schema}.outbox_source (system_identifier, timeline)
SELECT system_identifier, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
FROM pg_control_system();

-- CACHE 1: with more, ids are handed to sessions in blocks and say nothing about order.
CREATE SEQUENCE {schema}.outbox_id AS bigint CACHE 1;

-- The log: appended to, never updated. The xid stands before the id because
-- defaults are evaluated in column order, and a round is whole only if every
-- row's xid was drawn before its id.
CREATE TABLE {schema}.outbox (
    xid            xid8     NOT NULL DEFAULT pg_current_xact_id(),
    id             bigint   NOT NULL DEFAULT nextval('{schema}.outbox_id'),
    at             timestamptz NOT NULL DEFAULT clock_timestamp(), -- when it was appended, for people and for retention; no order rests on it
    slot           smallint NOT NULL CHECK (slot BETWEEN 0 AND 255), -- FNV-1a (32 bit) of partition_key, mod 256
    schema_version integer  NOT NULL,
    event_id       uuid     NOT NULL,
    topic          text     NOT NULL,
    event_type     text     NOT NULL,
    partition_key  text     NOT NULL,
    content_type   text     NOT NULL,
    headers        text,              -- JSON object of strings: what tracing needs; NULL when none
    payload        bytea    NOT NULL, -- the bytes that go on the wire
    CONSTRAINT outbox_pkey PRIMARY KEY (id)
) WITH (
    -- Retention deletes as many rows a second as are appended. Vacuum follows at 5 %
    -- of dead rows; below 2 % it would leave the indexes as they are.
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_threshold = 10000,
    -- Cutting empty pages off the end takes ACCESS EXCLUSIVE where the appends are.
    vacuum_truncate = off, toast.vacuum_truncate = off
);
ALTER SEQUENCE {schema}.outbox_id OWNED BY {schema}.outbox.id;
CREATE INDEX outbox_xid_id ON {schema}.outbox (xid, id);

-- Who reads the log: relays and durable handlers, each with how it is steered.
-- A row is written by the first Run of its name, changed by the holder of its lease
-- in the transaction of a link, and deleted by Drop.
CREATE TABLE {schema}.relay (
    relay       text             NOT NULL,
    kind        text             NOT NULL CHECK (kind IN ('relay', 'handler')),
    created_at  timestamptz      NOT NULL DEFAULT clock_timestamp(),
    paused      boolean          NOT NULL DEFAULT false,
    rate        double precision CHECK (rate > 0), -- events a second at most; NULL: as fast as it can
    types       text[],                            -- event types and patterns it lets through; NULL: all
    skip_below  bigint           NOT NULL DEFAULT 0, -- events with lower ids are left out, those still to be committed too
    lost_at     timestamptz,                       -- when retention's cap ended the position
    CONSTRAINT relay_pkey PRIMARY KEY (relay)
);

-- The positions: a chain of inserted links per relay and slot range. The latest
-- link, by n, is the position; whoever inserts n+1 has seen n.
CREATE TABLE {schema}.relay_link (
    relay             text        NOT NULL,
    slot_from         smallint    NOT NULL,
    slot_to           smallint    NOT NULL,
    n                 bigint      NOT NULL,
    holder            uuid        NOT NULL,
    round             bigint      NOT NULL, -- n of the link that started the round
    last_id           bigint      NOT NULL, -- all of the round up to this id is settled; = upper_id: finished
    at                timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- only where a round starts (n = round):
    prev_snapshot     pg_snapshot,          -- P: what the round before has seen
    prev_id           bigint,               -- L: the sequence's position before P's last xid
    snapshot          pg_snapshot,          -- T: what this round sees
    seen_id           bigint,               -- L': becomes the next round's L
    upper_id          bigint,               -- U: no row of the round lies above
    system_identifier bigint,
    timeline          text,
    CONSTRAINT relay_link_pkey PRIMARY KEY (relay, slot_from, slot_to, n)
);

-- Who should move a position. Who can is decided by the chain.
CREATE TABLE {schema}.relay_lease (
    relay     text        NOT NULL,
    slot_from smallint    NOT NULL,
    slot_to   smallint    NOT NULL,
    holder    uuid        NOT NULL,
    expires   timestamptz NOT NULL,
    CONSTRAINT relay_lease_pkey PRIMARY KEY (relay, slot_from, slot_to)
) WITH (fillfactor = 50);

-- What retention has taken from the log. One row, updated once per some thousand rows.
CREATE TABLE {schema}.retention (
    one       boolean PRIMARY KEY DEFAULT true CHECK (one),
    floor     bigint  NOT NULL DEFAULT 0,    -- rows up to this id may be gone
    late      xid8[]  NOT NULL DEFAULT '{}', -- transactions that may have committed, or may still commit, rows up to floor
    looked_at timestamptz                    -- when retention last looked
) WITH (fillfactor = 50);
INSERT INTO {schema}.retention DEFAULT VALUES;

-- Events that a relay has put aside: failing, waiting behind a failing one of
-- their key, or given up. Whole copies, since retention removes the log.
CREATE TABLE {schema}.parked (
    relay          text        NOT NULL,
    log_id         bigint      NOT NULL,
    slot           smallint    NOT NULL,
    state          text        NOT NULL CHECK (state IN ('retrying', 'waiting', 'given_up', 'discarded')),
    attempts       integer     NOT NULL DEFAULT 0,
    replays        integer     NOT NULL DEFAULT 0,
    last_error     text,
    parked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid            xid8        NOT NULL,
    schema_version integer     NOT NULL,
    event_id       uuid        NOT NULL,
    topic          text        NOT NULL,
    event_type     text        NOT NULL,
    partition_key  text        NOT NULL,
    content_type   text        NOT NULL,
    headers        text,
    payload        bytea       NOT NULL,
    CONSTRAINT parked_pkey PRIMARY KEY (relay, log_id)
);

-- What a person asks of a relay or durable handler; carried out by the holder of
-- its lease, and kept as the record of who did what.
CREATE TABLE {schema}.relay_request (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay        text        NOT NULL,
    action       text        NOT NULL CHECK (action IN ('replay', 'discard', 'pause', 'resume', 'rate', 'types', 'rewind', 'skip', 'drop', 'rebase')),
    log_id       bigint,               -- replay, discard: the parked event; rewind, skip: where to
    rate         double precision,     -- rate: events a second, NULL: as fast as it can
    types        text[],               -- types: what to let through, NULL: all
    requested_by text        NOT NULL DEFAULT session_user,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    done_at      timestamptz,
    outcome      text
);
CREATE INDEX relay_request_open ON {schema}.relay_request (relay, id) WHERE done_at IS NULL;

-- What consumers have settled, per handler.
CREATE TABLE {schema}.inbox (
    handler  text        NOT NULL,
    event_id uuid        NOT NULL,
    state    text        NOT NULL CHECK (state IN ('handled', 'poisoned')),
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT inbox_pkey PRIMARY KEY (handler, event_id)
);
