package outbox

import (
	"fmt"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

// What planFixture fills the tables with, besides the log.
const (
	manyRelays   = 50
	linksOfEach  = 2009 // as many as prune leaves at most, some more
	manyParked   = 20_000
	manyRequests = 20_000
	// oldXids are the transactions of what is filled in: 3 to 602. Any cluster has
	// come further than that before it takes its first connection.
	oldXids = 600
)

// planFixture is an empty log with tables that nobody analyzes unless the test does.
func planFixture(t *testing.T, which testkit.Server) *fixture {
	t.Helper()
	f := setUp(t, which)
	for _, table := range planTables {
		f.exec(`ALTER TABLE ` + f.table(table) + ` SET (autovacuum_enabled = false)`)
	}
	return f.old()
}

// grow has the tables as of a log of n events that has been in use for long, and nothing
// of what was in them.
func (f *fixture) grow(n int) {
	f.t.Helper()
	for _, table := range []string{"outbox", "relay_link", "relay_lease", "relay", "parked", "relay_request"} {
		f.exec(`DELETE FROM ` + f.table(table)) // not TRUNCATE, which would tell the planner
	}
	f.exec(`UPDATE ` + f.table("retention") + ` SET floor = 0, late = '{}'`)
	f.exec(`SELECT setval(` + quoteLiteral(f.table("outbox_id")) + `::regclass, 1, false)`)
	f.exec(`INSERT INTO `+f.table("outbox")+` (xid, slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT (3 + g::bigint * $2::int / ($1::int + 1))::text::xid8, g % 256, 1, '00000000-0000-0000-0000-000000000001', 'order', 'order.changed',
			'k' || g % 1000, 'application/json', '\x7b7d' FROM generate_series(1, $1::int) AS g`, n, oldXids)
	for i := range manyRelays {
		name := fmt.Sprintf("r%02d", i)
		f.exec(`INSERT INTO `+f.table("relay")+` (relay, kind) VALUES ($1, 'relay')`, name)
		f.exec(`INSERT INTO `+f.table("relay_link")+` (relay, slot_from, slot_to, n, holder, round, last_id, prev_snapshot, prev_id, snapshot, seen_id, upper_id)
			SELECT $1, 0, 255, n, '00000000-0000-0000-0000-000000000001', n - (n - 1) % 10, CASE WHEN n % 10 = 1 THEN 0 ELSE $5::bigint END,
				'103:300:103,104,105,106,107,108,109,110', $3::bigint, '303:450:303,304,305,306,307,308,309,310', $4::bigint, $4
			FROM generate_series(1, $2::int) AS n`, name, linksOfEach, idOfXid(n, 300)-1, idOfXid(n, 450)-1, idOfXid(n, 350))
	}
	f.exec(`INSERT INTO `+f.table("parked")+` (relay, log_id, slot, state, xid, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT 'r00', g, 0, 'waiting', '3', 1, gen_random_uuid(), 'order', 'order.changed', 'k' || g, 'text/plain', '0123456789' FROM generate_series(1, $1::int) AS g`, manyParked)
	f.exec(`INSERT INTO `+f.table("relay_request")+` (relay, action, done_at) SELECT 'r00', 'pause', clock_timestamp() FROM generate_series(1, $1::int) AS g`, manyRequests)
}

var planTables = []string{"outbox", "relay", "relay_link", "relay_lease", "retention", "parked", "relay_request"}

// idOfXid is the first event of a transaction, in a log of n.
func idOfXid(n, xid int) int64 { return int64(xid-3)*int64(n+1)/oldXids + 1 }

// know has the planner know about the tables what a name says:
//
//   - nothing: as nobody has ever analyzed them
//   - emptiness: as they were analyzed before anything was in them
//   - analyzed: as they were analyzed just now
//   - one transaction: as before, after one transaction has written the whole log
//   - many transactions: as before, after each event of it was written by one of its own
func (f *fixture) know(what string) {
	f.t.Helper()
	for _, table := range planTables {
		oid := quoteLiteral(f.table(table)) + `::regclass`
		andIndexes := `oid = ` + oid + ` OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = ` + oid + `)`
		switch what {
		case "nothing":
			f.exec(`DELETE FROM pg_statistic WHERE starelid = ` + oid)
			f.exec(`UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE ` + andIndexes)
		case "emptiness":
			f.exec(`DELETE FROM pg_statistic WHERE starelid = ` + oid)
			f.exec(`UPDATE pg_class SET reltuples = 0, relpages = 0 WHERE ` + andIndexes)
		default:
			f.exec(`ANALYZE ` + f.table(table))
		}
	}
	distinct, ok := map[string]string{"one transaction": "1", "many transactions": "-1"}[what]
	if ok {
		log := f.table("outbox")
		f.exec(`ALTER TABLE ` + log + ` ALTER COLUMN xid SET (n_distinct = ` + distinct + `)`)
		f.exec(`ANALYZE ` + log)
		f.exec(`ALTER TABLE ` + log + ` ALTER COLUMN xid RESET (n_distinct)`)
	}
}
