-- What the programs need in schema {schema}, by what they do. Run it as the owner of the
-- tables, and again after each migration; the roles must exist. None of them needs more,
-- and none may be the owner.

-- app publishes (bus, outbox.Log). The columns xid and id are left out: their defaults
-- are what keeps events from being lost.
GRANT USAGE ON SCHEMA {schema} TO {app};
GRANT SELECT ON {schema}.schema_migration TO {app}; -- only for migrations.Up and Check
GRANT INSERT (slot, schema_version, event_id, topic, event_type, partition_key, content_type, headers, payload) ON {schema}.outbox TO {app};
GRANT USAGE ON SEQUENCE {schema}.outbox_id TO {app};

-- relay relays, and handles durably: then its pool needs what the handlers themselves do
-- in their transactions as well. Run says what is missing.
GRANT USAGE ON SCHEMA {schema} TO {relay};
GRANT SELECT ON {schema}.schema_migration, {schema}.outbox, {schema}.retention TO {relay};
GRANT SELECT ON SEQUENCE {schema}.outbox_id TO {relay};
GRANT SELECT, UPDATE ON {schema}.outbox_source, {schema}.relay_request TO {relay};
GRANT SELECT, INSERT, DELETE ON {schema}.relay_link TO {relay};
GRANT SELECT, INSERT, UPDATE ON {schema}.relay, {schema}.relay_lease TO {relay};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.parked TO {relay};

-- retention removes what everybody has read (outbox.Retention): who relays, or another.
GRANT USAGE ON SCHEMA {schema} TO {retention};
GRANT SELECT ON {schema}.schema_migration, {schema}.outbox_source TO {retention};
GRANT SELECT, DELETE ON {schema}.outbox, {schema}.parked, {schema}.relay_request, {schema}.inbox TO {retention};
GRANT SELECT ON SEQUENCE {schema}.outbox_id TO {retention};
GRANT SELECT, UPDATE ON {schema}.retention TO {retention};
GRANT SELECT, INSERT, UPDATE ON {schema}.relay, {schema}.relay_lease TO {retention};
GRANT SELECT, INSERT ON {schema}.relay_link TO {retention};

-- consumer consumes (handlers.Router, handlers.Inbox): its pool needs what the handlers
-- added by HandleTx do in their transactions as well.
GRANT USAGE ON SCHEMA {schema} TO {consumer};
GRANT SELECT ON {schema}.schema_migration TO {consumer};
GRANT SELECT, INSERT, UPDATE ON {schema}.inbox TO {consumer};

-- watcher looks (outbox.ReadStats, outbox.Check); payloads are measured, not fetched.
GRANT USAGE ON SCHEMA {schema} TO {watcher};
GRANT SELECT ON {schema}.outbox, {schema}.relay, {schema}.relay_link, {schema}.relay_lease TO {watcher};
GRANT SELECT ON {schema}.parked, {schema}.relay_request, {schema}.retention TO {watcher};
GRANT SELECT ON SEQUENCE {schema}.outbox_id TO {watcher};

-- desk looks after relays and what they have parked (outbox.Desk), and can lose events.
-- What stands below the empty comment is for Drop only.
GRANT USAGE ON SCHEMA {schema} TO {desk};
GRANT SELECT ON {schema}.outbox, {schema}.retention TO {desk};
GRANT SELECT ON SEQUENCE {schema}.outbox_id TO {desk};
GRANT SELECT, INSERT ON {schema}.relay_request TO {desk};
GRANT SELECT ON {schema}.relay, {schema}.relay_link, {schema}.relay_lease, {schema}.parked TO {desk};
--
GRANT UPDATE ON {schema}.relay_request TO {desk};
GRANT INSERT, DELETE ON {schema}.relay_link TO {desk};
GRANT INSERT, UPDATE, DELETE ON {schema}.relay_lease TO {desk};
GRANT DELETE ON {schema}.relay, {schema}.parked TO {desk};

-- rebase adopts a log that was copied into another cluster (outbox.Rebase): rarely, and
-- perhaps rather the owner.
GRANT USAGE ON SCHEMA {schema} TO {rebase};
GRANT SELECT ON {schema}.schema_migration, {schema}.relay TO {rebase};
GRANT SELECT, UPDATE ON {schema}.outbox, {schema}.outbox_source, {schema}.relay_lease, {schema}.retention, {schema}.parked TO {rebase};
GRANT SELECT, UPDATE ON SEQUENCE {schema}.outbox_id, {schema}.relay_request_id_seq TO {rebase};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.relay_link TO {rebase};
GRANT SELECT, INSERT ON {schema}.relay_request TO {rebase};
