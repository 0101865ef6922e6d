package outbox

import (
	"context"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
)

// No append, relay or handler waits for retention, whatever else is open: the locks
// that it has are the ones that appends have too. It waits for nobody either: not for
// a transaction that has appended, for an old snapshot, or for a dump's lock.
func TestRetentionTakesNoLockThatAppendsWaitFor(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		f.old()
		s := f.stepped("test")
		f.exec(`CREATE TABLE ` + f.table("locks_seen") + ` (relation text, mode text)`)
		f.exec(`GRANT INSERT ON ` + f.table("locks_seen") + ` TO PUBLIC`)
		f.exec(`CREATE FUNCTION ` + f.table("note_locks") + `() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				INSERT INTO ` + f.table("locks_seen") + ` SELECT relation::regclass::text, mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation';
				RETURN NULL; END $$`)
		tables := []string{"outbox", "parked", "relay_request", "inbox", "retention", "relay", "relay_link"}
		for _, table := range tables {
			f.exec(`CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON ` + f.table(table) + ` FOR EACH STATEMENT EXECUTE FUNCTION ` + f.table("note_locks") + `()`)
		}
		f.exec(`INSERT INTO ` + f.table("inbox") + ` VALUES ('h', gen_random_uuid(), 'handled', '2001-01-01')`)
		f.exec(`INSERT INTO ` + f.table("relay_request") + ` (relay, action, done_at) VALUES ('test', 'pause', '2001-01-01')`)
		f.add("k", 1, 10)
		held := f.stepped("held")
		s.rest()
		f.exec(`TRUNCATE ` + f.table("locks_seen"))

		appended := f.begin(f.session(which))
		f.append(appended, event("late", 1))
		snapshot, dump := f.session(which), f.begin(f.session(which))
		if _, err := snapshot.Exec(t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM `+f.table("outbox")); err != nil {
			t.Fatal(err)
		}
		for _, table := range tables {
			if _, err := dump.Exec(t.Context(), `LOCK TABLE `+f.table(table)+` IN ACCESS SHARE MODE`); err != nil {
				t.Fatal(err)
			}
		}
		f.retain(10, func(c *RetentionConfig) { c.MaxHoldRows = 1 })
		held.stop()
		var found []string
		rows, err := f.pool.Query(t.Context(), `SELECT DISTINCT relation || ' ' || mode FROM `+f.table("locks_seen")+` ORDER BY 1`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var lock string
			if err := rows.Scan(&lock); err != nil {
				t.Fatal(err)
			}
			found = append(found, lock)
			if mode := lock[strings.LastIndex(lock, " ")+1:]; mode != "AccessShareLock" && mode != "RowExclusiveLock" && mode != "RowShareLock" {
				t.Errorf("retention has locked %s", lock)
			}
		}
		if all := strings.Join(found, "\n"); !strings.Contains(all, "outbox RowExclusiveLock") || !strings.Contains(all, "inbox RowExclusiveLock") {
			t.Errorf("the locks were not seen: %v", found)
		}
	})
}

// What a chunk touches does not depend on statistics, nor on what has been removed
// below it, which an old snapshot keeps from being cleaned up.
func TestRetentionIsReadByPlainPlans(t *testing.T) {
	t.Parallel()
	for _, statistics := range []string{"never taken", "of the empty tables", "of the full tables"} {
		t.Run(statistics, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			f.old()
			tables := []string{"outbox", "relay_link", "relay", "retention"}
			for _, table := range tables {
				f.exec(`ALTER TABLE ` + f.table(table) + ` SET (autovacuum_enabled = off)`)
			}
			analyze := func(when string) {
				for _, table := range tables {
					if statistics == when {
						f.exec(`ANALYZE ` + f.table(table))
					}
				}
			}
			analyze("of the empty tables")
			const n = 30_000
			f.exec(`INSERT INTO `+f.table("outbox")+` (slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
				SELECT 1, 1, gen_random_uuid(), 't', 't', 'k', 'c', '' FROM generate_series(1, $1)`, n)
			for _, name := range []string{"a", "b", "c"} {
				s := f.stepped(name)
				if err := s.t.startRound(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				s.stop()
				if err := s.t.chain.finish(t.Context()); err != nil {
					t.Fatal(err)
				}
				// Links that were pruned, and are not cleaned up.
				f.exec(`INSERT INTO `+f.table("relay_link")+` (relay, slot_from, slot_to, n, holder, round, last_id)
					SELECT relay, slot_from, slot_to, -i, holder, round, last_id FROM `+f.table("relay_link")+`, generate_series(1, 3000) AS i WHERE relay = $1 AND n = 1`, name)
			}
			analyze("of the full tables")
			old := f.session(testkit.PG15)
			if _, err := old.Exec(t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1`); err != nil {
				t.Fatal(err)
			}
			f.exec(`DELETE FROM ` + f.table("relay_link") + ` WHERE n < 0`)
			f.exec(`DELETE FROM `+f.table("outbox")+` WHERE id <= $1`, n-1000)
			f.exec(`UPDATE `+f.table("retention")+` SET floor = $1`, n-1000)

			for _, mode := range []string{"force_generic_plan", "force_custom_plan"} {
				for what, sql := range map[string]string{
					"a chunk":   f.retention().chunkSQL(),
					"who waits": f.retention().db.heldBackSQL(),
				} {
					conn := f.session(testkit.PG15)
					tx := f.begin(conn)
					execute := `EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) EXECUTE look`
					if strings.Contains(sql, "$1") {
						execute += `(29000, 29100, 1000000, false)`
					}
					for _, q := range []string{`SET LOCAL plan_cache_mode = ` + mode, planForTheEnds, `PREPARE look AS ` + sql} {
						if _, err := tx.Exec(t.Context(), q); err != nil {
							t.Fatal(err)
						}
					}
					plan := explained(t, tx, execute)
					_ = tx.Rollback(t.Context())
					if strings.Contains(strings.ReplaceAll(plan, "Seq Scan on retention", ""), "Seq Scan on") || strings.Contains(plan, "outbox_xid_id") || strings.Contains(plan, "Bitmap") {
						t.Errorf("%s, statistics %s, %s: more than a range of the primary key is read:\n%s", what, statistics, mode, plan)
					}
					if n := touched(t, plan); n > 1000 {
						t.Errorf("%s, statistics %s, %s: %d pages touched:\n%s", what, statistics, mode, n, plan)
					}
				}
			}
		})
	}
}

func explained(t *testing.T, tx pgx.Tx, sql string) string {
	t.Helper()
	rows, err := tx.Query(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

var bufferCounts = regexp.MustCompile(`(?:hit|read)=(\d+)`)

// touched is how many pages the topmost node of a plan, and so all of it, has read.
func touched(t *testing.T, plan string) (n int) {
	t.Helper()
	for line := range strings.SplitSeq(plan, "\n") {
		if strings.Contains(line, "Buffers:") {
			for _, m := range bufferCounts.FindAllStringSubmatch(line, -1) {
				k, err := strconv.Atoi(m[1])
				if err != nil {
					t.Fatal(err)
				}
				n += k
			}
			return n
		}
	}
	t.Fatalf("no buffers in the plan:\n%s", plan)
	return 0
}

func init() { testkit.RegisterChild("retention", childRetention) }

// childRetention removes all it can, in small chunks, until it is killed.
func childRetention(args []string) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, args[0])
	if err != nil {
		panic(err)
	}
	r, err := NewRetention(pool, RetentionConfig{Schema: args[1], Interval: 10 * time.Millisecond})
	if err != nil {
		panic(err)
	}
	for {
		r.width = 3
		if _, err := r.Once(ctx); err != nil {
			panic(err)
		}
	}
}

// Killed between any two of its transactions, it leaves nothing that the next one does
// not find: neither late events below the floor, nor others.
func TestRetentionIsKilled(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.old()
	s := f.stepped("test")
	conn := f.session(testkit.PG15)
	n := 0
	for range 4 {
		late := f.begin(conn)
		f.append(late, event("late", 1))
		f.add("k", n+1, 60)
		n += 60
		s.rest()
		child := testkit.StartChild(t, "retention", testkit.URL(t, testkit.PG15), f.schema)
		testkit.Eventually(t, 20*time.Second, func() bool { return f.logged() < 50 }, "some of the events are removed")
		f.commit(late)
		child.Kill9()
	}
	s.rest()
	f.retention().mustOnce(t)
	f.retention().mustOnce(t)
	if left := f.logged(); left != 0 {
		t.Errorf("%d events stay in the log for ever", left)
	}
	if got := len(s.ns("late")); got != 4 || len(s.ns("k")) != n {
		t.Errorf("delivered %d late events and %d others, want 4 and %d", got, len(s.ns("k")), n)
	}
}

func (r *Retention) mustOnce(t *testing.T) {
	t.Helper()
	if _, err := r.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// What a crash of the server takes back of retention's work, it takes back whole:
// rows, floor and what was noted as late.
func TestRetentionOutlivesACrashOfTheServer(t *testing.T) {
	t.Parallel()
	server, f := crashing(t)
	f.old()
	s := f.stepped("test")
	for range 3 {
		f.add("k", len(s.ns("k"))+1, 20)
		s.rest()
		f.retain(20)
		server.CrashImmediate()
		server.Start()
		for _, pool := range []*pgxpool.Pool{f.pool, f.as(testkit.App), f.as(testkit.Relay)} {
			pool.Reset()
		}
		floor, err := f.database().floor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := f.count(`SELECT count(*) FROM `+f.table("outbox")+` WHERE id <= $1`, floor); n != 0 {
			t.Errorf("%d events lie below the floor of %d that are not removed", n, floor)
		}
		s.mayRepeat = nil
		s.newHolder()
		s.rest()
		f.retention().mustOnce(t)
		if n := f.logged(); n != 0 {
			t.Errorf("%d events are left", n)
		}
	}
}
