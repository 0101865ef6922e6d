package outbox

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pin is what one statement may read of the tables that grow.
type pin struct {
	what string
	text string // stands in it, and in no other; spaces are single ones, names are bare
	// index is the one along which the log is read, or two; "" if the log has no part in it.
	index string
	// rows are how many of the log's, the links' and the parked it may go through, those
	// that it passes over included, and how many more for each position that there is.
	rows, perPosition int
	// few: its range of ids is so small that it does not matter if they are read by pages.
	few bool
	// transactions: it may go through all rows of the transactions that it asks for.
	transactions bool
	// people: it is for a person, who may ask for what no index has, and goes through
	// what is parked, or a whole chain.
	people bool
}

// pins are all the statements that read the log, the links or what is parked. Nothing
// in them depends on how much there is.
var pins = []pin{
	// Which rows are new.
	{what: "the idle look", text: `AND NOT pg_visible_in_snapshot(xid, $3::text::pg_snapshot)), EXISTS (SELECT FROM relay_request`, index: "outbox_pkey", rows: 50, few: true},
	{what: "has a late transaction events", text: `SELECT EXISTS (SELECT FROM outbox WHERE xid = ANY`, index: "outbox_xid_id", rows: 1},
	{what: "a window of a round", text: `payload FROM outbox WHERE id > $1 AND id <= $2 AND slot`, index: "outbox_pkey", rows: 2000},
	{what: "over a gap", text: `SELECT id FROM outbox WHERE id > $1 AND id <= $2 ORDER BY id LIMIT 1`, index: "outbox_pkey", rows: 1},
	{what: "late ids", text: `SELECT id FROM outbox WHERE xid = ANY ($1::text[]::xid8[]) AND id + 0 > $2 AND id + 0 <= $3`, index: "outbox_xid_id", transactions: true},
	{what: "late rows", text: `payload FROM outbox WHERE id = ANY ($1::bigint[]) AND slot`, index: "outbox_pkey", rows: 500},

	// The position.
	{what: "load a position", text: `SELECT a.n, a.holder::text, a.last_id, b.n`, rows: 2},
	{what: "a link", text: `INSERT INTO relay_link (relay, slot_from, slot_to, n, holder, round, last_id) VALUES`, rows: 1},
	{what: "the link that starts a round", text: `SELECT $1, $2, $3, CASE WHEN $4::bigint = 1 THEN 1 ELSE (SELECT n + 1`, rows: 1},
	{what: "prune links", text: `DELETE FROM relay_link WHERE relay = $1 AND slot_from = $2`, rows: 100},
	{what: "where a new name begins", text: `SELECT id, at FROM outbox WHERE id > $1 ORDER BY id LIMIT 1`, index: "outbox_pkey", rows: 1},
	{what: "whose cluster is it", text: `SELECT c.system_identifier, (SELECT system_identifier FROM outbox_source)`, index: "outbox_xid_id", rows: 2, perPosition: 8},
	{what: "is the sequence behind", text: `SELECT greatest((SELECT id FROM outbox WHERE id > $1`, index: "outbox_pkey", rows: 2, perPosition: 4},

	// What is put aside.
	{what: "put aside", text: `WITH put AS (INSERT INTO parked`, index: "outbox_pkey", rows: 5},
	{what: "what holds up keys, or is asked for", text: `SELECT log_id, slot, state, attempts`, rows: 5},
	{what: "count what is parked", text: `SELECT count(*), coalesce(sum(octet_length(payload)), 0)::bigint FROM parked WHERE relay = $1 AND slot`, rows: 5},
	{what: "payloads of parked events", text: `SELECT log_id, payload FROM parked`, rows: 5},
	{what: "ids of parked events", text: `SELECT log_id FROM parked WHERE relay = $1 AND slot`, rows: 5},
	{what: "states of parked events", text: `SELECT log_id, state FROM parked`, rows: 5},
	{what: "parked events tried again", text: `UPDATE parked AS t SET state = u.state`, rows: 5},
	{what: "parked events replayed or discarded", text: `UPDATE parked SET state =`, rows: 5},
	{what: "parked events done with", text: `DELETE FROM parked WHERE relay = $1 AND log_id`, rows: 5},

	// Retention.
	{what: "who holds the log back", text: `SELECT p.relay, coalesce(p.kind, 'relay'), p.passed`, index: "outbox_pkey", perPosition: 30},
	{what: "a chunk leaves", text: `young AS MATERIALIZED`, index: "outbox_pkey", rows: 800, perPosition: 4},
	{what: "late transactions that all have passed", text: `SELECT x::text FROM unnest($1::text[]::xid8[]) AS x WHERE EXISTS (SELECT FROM reader)`, perPosition: 4},
	{what: "late events below the floor", text: `SELECT id FROM outbox WHERE xid = ANY ($1::text[]::xid8[]) AND id + 0 <= $2`, index: "outbox_xid_id", transactions: true},
	{what: "late events leave", text: `WHERE o.id = ANY ($1::bigint[]) AND o.at < now()`, index: "outbox_pkey", rows: 5, perPosition: 4},
	{what: "late transactions have none left", text: `SELECT x FROM unnest(late) AS x WHERE x <> ALL`, index: "outbox_xid_id", transactions: true},
	{what: "retention over a gap", text: `SELECT coalesce((SELECT id - 1 FROM outbox WHERE id > $1`, index: "outbox_pkey", rows: 1},
	{what: "a position is ended", text: `, linked AS ( INSERT INTO relay_link`, perPosition: 4},
	{what: "a strip of what is parked", text: `WITH gone AS (DELETE FROM parked AS t WHERE t.ctid`, index: "outbox_pkey", rows: manyParked},

	// People.
	{what: "what a skip leaves out", text: `SELECT count(*) FROM outbox WHERE id > $1 AND id < $2`, index: "outbox_pkey", rows: 100},
	{what: "what a move is about", text: `SELECT count(*), min(at) FROM outbox WHERE id > $1 AND id <= $2`, index: "outbox_pkey", rows: 1100},
	{what: "where a position is", text: `SELECT r.lost_at, r.types, greatest(CASE a.last_id`, rows: 2},
	{what: "what a drop would lose", text: `FROM parked WHERE relay = $1 AND state <> 'discarded'`, people: true},
	{what: "a drop", text: `DELETE FROM relay_link WHERE relay = $1`, people: true},
	{what: "a drop of what is parked", text: `DELETE FROM parked WHERE relay = $1`, people: true},
	{what: "the desk's list", text: `SELECT p.log_id, p.state, p.attempts, p.replays`, people: true},
	{what: "the desk's count", text: `count(*) FILTER (WHERE p.state = 'given_up')`, people: true},
	{what: "are they parked", text: `SELECT log_id FROM parked WHERE relay = $1 AND log_id = ANY ($2::bigint[]) AND state`, rows: 5},
	{what: "ask for what matches", text: `WITH chosen AS (`, people: true},

	// Watchers.
	{what: "the log's ends", text: `retention.floor, retention.looked_at, oldest.id`, index: "outbox_pkey", rows: 1},
	{what: "relays", text: `SELECT name.relay, coalesce(r.kind, 'relay'), r.created_at`, perPosition: 2},
	{what: "positions", text: `SELECT p.relay, p.n, p.at, p.n + 1`, perPosition: 110},
	{what: "the oldest unpublished event", text: `WITH p AS MATERIALIZED (SELECT *`, index: "outbox_pkey outbox_xid_id", perPosition: 60},
	{what: "parked events by key", text: `WITH by_key AS (`, rows: manyParked, perPosition: 2},
}

var ofSchema = regexp.MustCompile(`"t_\w+"\.|t_\w+\.`)

// bare is a statement with single spaces and without names of schemas and their quotes.
func bare(sql string) string {
	return strings.ReplaceAll(spaces.ReplaceAllString(ofSchema.ReplaceAllString(sql, ""), " "), `"`, "")
}

// find gives the pin of a statement: of several whose text it has, the first.
func find(sql string) *pin {
	sql = bare(sql)
	for i := range pins {
		if strings.Contains(sql, pins[i].text) {
			return &pins[i]
		}
	}
	return nil
}

// holds complains of what the plan reads otherwise than its pin allows, and says whether
// it reads any of the tables that grow. Of a plan that was kept from before there was
// anything only the log's part counts: until the next ANALYZE, by which the server throws
// it away, what reads all links reads more of them than it need.
func (p *ranPlan) holds(t *testing.T, when string, kept bool, n int64, positions int) (of *pin) {
	t.Helper()
	of = find(p.SQL)
	gone, grows := 0.0, false
	p.Root.each(func(k *node) {
		if k.Table != "outbox" && k.Table != "relay_link" && k.Table != "parked" || k.Type == "ModifyTable" || kept && k.Table != "outbox" {
			return
		}
		grows = true
		gone += (k.Rows + k.Filtered) * k.Loops
		along := map[string]string{"relay_link": "relay_link_pkey", "parked": "parked_pkey"}[k.Table]
		if of != nil && k.Table == "outbox" {
			along = of.index
		}
		byIndex := strings.HasPrefix(k.Type, "Index") && slices.Contains(strings.Fields(along), k.Index)
		if of != nil && of.few && len(k.Plans) == 1 && k.Plans[0].Type == "Bitmap Index Scan" {
			byIndex = k.Plans[0].Index == along
		}
		byPage := k.Table == "parked" && k.Type == "Tid Range Scan"
		if of != nil && n > 0 && !byIndex && !byPage && !(of.people && k.Table != "outbox") {
			t.Errorf("%s: %s: %s of %s by %q, want an index scan by %q:\n%s", when, of.what, k.Type, k.Table, k.Index, along, p)
		}
	})
	switch {
	case !grows:
		return of
	case of == nil:
		t.Errorf("%s: a statement that no pin is for: add one:\n%s", when, p)
		return nil
	case of.people:
		return of
	}
	if n == 0 { // reading all of some pages is what there is to do
		if p.pages() > 200+20*positions {
			t.Errorf("%s: %s: it touches %d pages of a log with next to nothing in it:\n%s", when, of.what, p.pages(), p)
		}
		return of
	}
	most := float64(of.rows + of.perPosition*positions)
	if of.transactions {
		most += float64(10 * (n/oldXids + 1))
	}
	if gone > most {
		t.Errorf("%s: %s: it goes through %.0f rows, want %.0f at most:\n%s", when, of.what, gone, most, p)
	}
	// A row costs the way down an index at most, once more if it is changed, and so does
	// each transaction that is asked for and has none: as many as run on the server.
	const inVain = 600
	if kept {
		return of
	}
	if pages, most := float64(p.pages()), inVain+6*gone+16*p.rows()+float64(16*positions*min(1, of.perPosition)); pages > most {
		t.Errorf("%s: %s: it touches %.0f pages for %.0f rows, want %.0f at most:\n%s", when, of.what, pages, gone, most, p)
	}
	return of
}
