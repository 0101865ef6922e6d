package outbox

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// fill appends n rows of that many bytes by one statement, as if each ten of them
// came from a transaction of their own, long ago.
func (f *fixture) fill(n, bytes int) {
	f.t.Helper()
	f.exec(`INSERT INTO `+f.table("outbox")+` (xid, slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT (3 + g / 10)::text::xid8, 0, 1, gen_random_uuid(), 'order', 'order.changed', 'k' || g % 1000, 'application/json', convert_to(repeat('x', $2), 'UTF8')
		FROM generate_series(1, $1::int) AS g`, n, bytes)
}

// chainOf writes a chain of n links, ten of a round each, that stands in the middle of
// a round, at last, with ten transactions late in this round, and ten in the next.
func (f *fixture) chainOf(relay string, n, last int) {
	f.t.Helper()
	f.exec(`INSERT INTO `+f.table("relay")+` (relay, kind) VALUES ($1, 'relay') ON CONFLICT DO NOTHING`, relay)
	f.setLease(relay, held)
	f.exec(`INSERT INTO `+f.table("relay_link")+` (relay, slot_from, slot_to, n, holder, round, last_id, prev_snapshot, prev_id, snapshot, seen_id, upper_id)
		SELECT $1, 0, 255, n, '00000000-0000-0000-0000-000000000001', n - (n - 1) % 10, CASE WHEN n % 10 = 1 THEN 0 ELSE $3 END,
			('103:1000:' || p.xips)::pg_snapshot, 10000, ('3:1000000:' || t.xips)::pg_snapshot, u.last + 1, u.last + 1
		FROM generate_series(1, $2::int) AS n,
			(SELECT string_agg(x::text, ',' ORDER BY x) AS xips FROM generate_series(103, 112) AS x) AS p,
			(SELECT string_agg(x::text, ',' ORDER BY x) AS xips FROM generate_series(3, 12) AS x) AS t,
			(SELECT coalesce(pg_sequence_last_value('`+f.table("outbox_id")+`'::regclass), 0) AS last) AS u`, relay, n, last)
}

// explain gives the plans of all statements of ReadStats, under its own settings.
func (f *fixture) explain(how string, generic bool) (plans []string) {
	f.t.Helper()
	s := statsReader{db: f.database(), counted: parkedCounted, discarded: true}
	tx, err := f.pool.Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	defer func() { // or the pool's next user meets them
		for i := range s.queries() {
			_, _ = tx.Exec(context.Background(), fmt.Sprintf(`DEALLOCATE q%d`, i))
		}
	}()
	exec := func(sql string, args ...any) {
		if _, err := tx.Exec(f.t.Context(), sql, args...); err != nil {
			f.t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(readPlainly, "10000")
	if generic {
		exec(`SET LOCAL plan_cache_mode = force_generic_plan`)
	}
	for i, q := range s.queries() {
		exec(fmt.Sprintf(`PREPARE q%d AS %s`, i, q.sql))
		sql := fmt.Sprintf(`EXPLAIN (%s) EXECUTE q%d`, how, i)
		if len(q.args) > 0 {
			sql += fmt.Sprintf(`(%v, %v, %v)`, q.args...)
		}
		rows, err := tx.Query(f.t.Context(), sql)
		if err != nil {
			f.t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			f.t.Fatal(err)
		}
		plans = append(plans, strings.Join(lines, "\n"))
	}
	return plans
}

var scan = regexp.MustCompile(`((?:Seq|Index|Index Only|Bitmap Heap|Bitmap Index|Tid|Sample) Scan(?: Backward)?)(?: using (\w+))? on (\w+)(?: (\w+))?`)

// Whatever the statistics say, or if there are none: the log and the chains are read
// by index scans only, along the index that each probe was written for.
func TestStatsPlansDoNotDependOnStatistics(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	for _, table := range []string{"outbox", "relay_link", "parked"} {
		f.exec(`ALTER TABLE ` + f.table(table) + ` SET (autovacuum_enabled = false)`)
	}
	good := func(when string) {
		t.Helper()
		for _, generic := range []bool{false, true} {
			plans := f.explain("COSTS OFF", generic)
			onLog := 0
			for _, m := range scan.FindAllStringSubmatch(strings.Join(plans, "\n"), -1) {
				how, index, table := strings.TrimSuffix(m[1], " Backward"), m[2], m[3]
				switch table {
				case "outbox":
					onLog++
					if how != "Index Scan" || index != "outbox_pkey" && index != "outbox_xid_id" {
						t.Errorf("%s: %s", when, m[0])
					}
				case "relay_link", "parked":
					if !strings.HasPrefix(how, "Index") || index != table+"_pkey" {
						t.Errorf("%s: %s", when, m[0])
					}
				}
			}
			unpublished := plans[3]
			if n := strings.Count(unpublished, "Index Cond: (id > GREATEST("); n != 2 || !strings.Contains(unpublished, "Index Cond: ((ROW(xid, id) > ROW(") || onLog != 4 {
				t.Errorf("%s: %d probes of the log\n%s", when, onLog, unpublished)
			}
			if strings.Contains(unpublished, "Sort Key: outbox") {
				t.Errorf("%s: rows of the log are sorted\n%s", when, unpublished)
			}
		}
	}
	analyze := func() {
		for _, table := range []string{"outbox", "relay_link", "relay_lease", "relay", "parked", "relay_request"} {
			f.exec(`ANALYZE ` + f.table(table))
		}
	}
	good("empty, never analyzed")
	analyze()
	good("empty, analyzed")
	f.fill(20_000, 10)
	f.chainOf("test", 3009, 5000)
	for i := range 20 {
		f.chainOf(fmt.Sprint("r", i), 9, 15_000)
	}
	f.exec(`INSERT INTO ` + f.table("parked") + ` (relay, log_id, slot, state, xid, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT 'test', g, 0, 'waiting', '3', 1, gen_random_uuid(), 'order', 'order.changed', 'k' || g, 'text/plain', '0123456789' FROM generate_series(1, 5000) AS g`)
	good("filled, and analyzed while empty")
	analyze()
	good("filled, and analyzed")
	f.exec(`UPDATE ` + f.table("outbox") + ` SET xid = '3'`)
	analyze()
	good("all of one transaction, and analyzed")

	// What is read does not grow with the log, its transactions, or its chains.
	for _, line := range strings.Split(strings.Join(f.explain("ANALYZE, TIMING OFF, COSTS OFF, SUMMARY OFF", false), "\n"), "\n") {
		m := rowsRead.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		rows, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		if m[1] == "outbox" && rows > 1 || m[1] == "relay_link" && rows > 100 {
			t.Errorf("too many rows at once: %s", line)
		}
	}
}

var rowsRead = regexp.MustCompile(` on (\w+).*actual rows=(\d+)`)

// TestMeasureStats prints what ReadStats and Check cost on a log of ten million rows,
// with 50 relays, one of which has a chain of 10,000 links, each with 20 late
// transactions; without statistics and with; and with 100,000 parked events on top:
//
//	POSTBUS_MEASURE=1 go test -run TestMeasureStats -v -timeout 30m ./outbox
func TestMeasureStats(t *testing.T) {
	f := measured(t)
	f.fill(10_000_000, 100)
	f.chainOf("long", 10_009, 5000)
	for i := range 49 {
		f.chainOf(fmt.Sprintf("r%02d", i), 309, 5000+i*200_000)
	}
	measure := func(when string) {
		median := func(do func()) time.Duration {
			took := make([]time.Duration, 21)
			for i := range took {
				began := time.Now()
				do()
				took[i] = time.Since(began)
			}
			slices.Sort(took)
			return took[len(took)/2].Round(100 * time.Microsecond)
		}
		cfg := CheckConfig{Schema: f.schema, MaxAge: time.Hour, MaxParked: 200_000}
		stats := median(func() { f.stats() })
		bounded := median(func() { _, _ = f.database().stats(t.Context(), 10_000, false) })
		all := median(func() { f.healthy(when, cfg) })
		t.Logf("%s: ReadStats %s; a look of Check %s; one that counts all parked %s", when, stats, bounded, all)
	}
	analyze := func() {
		for _, table := range []string{"outbox", "relay_link", "parked"} {
			f.exec(`ANALYZE ` + f.table(table))
		}
	}
	measure("never analyzed")
	analyze()
	measure("analyzed")
	f.exec(`INSERT INTO ` + f.table("parked") + ` (relay, log_id, slot, state, xid, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
		SELECT 'long', g, 0, CASE WHEN g % 5 = 0 THEN 'retrying' ELSE 'waiting' END, '3', 1, gen_random_uuid(), 'order', 'order.changed', 'k' || g / 5, 'application/json', convert_to(repeat('x', 600), 'UTF8')
		FROM generate_series(1, 100000) AS g`)
	measure("with 100,000 parked")
	analyze()
	measure("with 100,000 parked, analyzed")
	for i, plan := range f.explain("ANALYZE, BUFFERS, COSTS OFF", false) {
		what := []string{"log", "relays", "positions", "unpublished", "parked", "requests"}[i]
		t.Logf("%s: %s; %s", what, regexp.MustCompile(`Buffers: [^\n]*`).FindString(plan), regexp.MustCompile(`Execution Time: [^\n]*`).FindString(plan))
	}
}

// TestMeasureSize prints what an event of 600 bytes costs in the log:
//
//	POSTBUS_MEASURE=1 go test -run TestMeasureSize -v ./outbox
func TestMeasureSize(t *testing.T) {
	f := measured(t)
	const n = 100_000
	var lsn string
	get := func(into any, sql string) {
		if err := f.pool.QueryRow(t.Context(), sql).Scan(into); err != nil {
			t.Fatal(err)
		}
	}
	for _, per := range []int{1, 10, 1000} {
		f.exec(`TRUNCATE ` + f.table("outbox"))
		f.exec(`CHECKPOINT`)
		// Full pages after a checkpoint are written once each, and are a matter of how often those come.
		get(&lsn, `SELECT pg_current_wal_lsn()::text`)
		payload := strings.Repeat("x", 600)
		count := n
		if per == 1 {
			count = n / 10
		}
		for i := 0; i < count; i += per {
			f.tx(func(tx pgx.Tx) error {
				_, err := tx.Exec(t.Context(), `INSERT INTO `+f.table("outbox")+` (slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
					SELECT 0, 1, gen_random_uuid(), 'order', 'order.changed', gen_random_uuid()::text, 'application/json', convert_to($2, 'UTF8') FROM generate_series(1, $1::int)`, per, payload)
				return err
			})
		}
		var wal, table, pkey, xid, total int64
		get(&wal, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '`+lsn+`')::bigint`)
		get(&table, `SELECT pg_relation_size('`+f.table("outbox")+`')`)
		get(&pkey, `SELECT pg_relation_size('`+f.schema+`.outbox_pkey')`)
		get(&xid, `SELECT pg_relation_size('`+f.schema+`.outbox_xid_id')`)
		get(&total, `SELECT pg_total_relation_size('`+f.table("outbox")+`')`)
		c := int64(count)
		t.Logf("%d events a transaction: table %d, outbox_pkey %d, outbox_xid_id %d, together %d bytes an event; WAL %d", per, table/c, pkey/c, xid/c, total/c, wal/c)
	}
}

// measured is a server of the test's own with room to work.
func measured(t *testing.T) *fixture {
	t.Helper()
	if os.Getenv("POSTBUS_MEASURE") == "" {
		t.Skip("it measures, and proves nothing: POSTBUS_MEASURE=1")
	}
	server := testkit.PrivatePostgres(t, "shared_buffers=512MB", "max_wal_size=8GB", "checkpoint_timeout=1h", "autovacuum=off", "fsync=off")
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	f := &fixture{t: t, schema: "measured", pool: pool}
	if err := migrations.Up(t.Context(), pool, f.schema); err != nil {
		t.Fatal(err)
	}
	if f.log, err = NewLog(LogConfig{Schema: f.schema}); err != nil {
		t.Fatal(err)
	}
	return f
}
