package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

type logged struct {
	Message
	slot int16
}

// rows is what the log holds, by event id.
func (f *fixture) rows() map[uuid.UUID]logged {
	f.t.Helper()
	rows, err := f.pool.Query(context.Background(), `SELECT `+rowColumns+` FROM `+f.table("outbox"))
	if err != nil {
		f.t.Fatal(err)
	}
	defer rows.Close()
	all, rd := map[uuid.UUID]logged{}, newRowReader("")
	for rows.Next() {
		var it item
		if _, err := rd.read(rows, &it); err != nil {
			f.t.Fatal(err)
		}
		all[it.EventID] = logged{it.Message, it.slot}
	}
	if rows.Err() != nil {
		f.t.Fatal(rows.Err())
	}
	return all
}

// One event, two, thousands: on every server, in every exec mode, the log holds
// what was appended, byte for byte.
func TestAppendOneAndMany(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, mode := range execModes(which) {
			t.Run(fmt.Sprintf("%s/%s", which, mode), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, which)
				f.pool = testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.DefaultQueryExecMode = mode })
				var all []events.DomainEvent
				for _, n := range []int{1, 1, 2, 3000} {
					evs := make([]events.DomainEvent, n)
					for i := range evs {
						e := event(fmt.Sprintf("clé-%d ' \" \\ 漢", i%300), i)
						e.SchemaVersion = 1 + i%3
						e.Data = []byte(`{"n": 1,  "html": "<&>\u0000\ud83d\ude00 \\x00 '` + strings.Repeat("é", i%50) + `"}`)
						if i%2 == 0 {
							e.Metadata = map[string]string{"traceparent": `00-"quoted", {braces} \N-01`, "tracestate": "a=1\\", "other": "not a header"}
						}
						evs[i] = e
					}
					all = append(all, evs...)
					f.tx(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, evs...) })
				}
				f.tx(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx) }) // none
				got := f.rows()
				if len(got) != len(all) {
					t.Fatalf("the log holds %d events of %d", len(got), len(all))
				}
				var last int64
				for _, e := range all {
					row, want := got[e.EventID], must(e.Encode())
					if string(row.Payload) != string(want) {
						t.Fatalf("the log holds %q, want %q", row.Payload, want)
					}
					if row.EventType != e.EventType || row.SchemaVersion != e.SchemaVersion || row.Key != e.AggregateID || row.Topic != "order" ||
						row.ContentType != "application/json" || row.slot != slotOf(e.AggregateID) {
						t.Fatalf("the log holds %+v for %+v", row.Message, e)
					}
					if len(e.Metadata) == 0 && row.Headers != nil ||
						len(e.Metadata) > 0 && (len(row.Headers) != 2 || row.Headers["traceparent"] != e.Metadata["traceparent"] || row.Headers["tracestate"] != e.Metadata["tracestate"]) {
						t.Fatalf("headers %v of metadata %v", row.Headers, e.Metadata)
					}
					if row.LogID <= last {
						t.Fatalf("id %d after id %d: not in the given order", row.LogID, last)
					}
					last = row.LogID
				}
			})
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// The slot's hash is part of the stored format: FNV-1a, 32 bit, by the test
// vectors of http://www.isthe.com/chongo/src/fnv/test_fnv.c.
func TestSlotOf(t *testing.T) {
	t.Parallel()
	for key, hash := range map[string]uint32{"": 0x811c9dc5, "a": 0xe40c292c, "foobar": 0xbf9cf968} {
		if got := slotOf(key); got != int16(hash%256) {
			t.Errorf("slot of %q is %d, want %d", key, got, hash%256)
		}
	}
}

// An append that is refused has written nothing and leaves the transaction usable.
func TestAppendRefusesBeforeItWrites(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, which)
			small, err := NewLog(LogConfig{Schema: f.schema, MaxDocumentBytes: 400})
			if err != nil {
				t.Fatal(err)
			}
			wild, err := NewLog(LogConfig{Schema: f.schema, Topic: func(string) string { return "order.*" }})
			if err != nil {
				t.Fatal(err)
			}
			spoiled := func(spoil func(*events.DomainEvent)) events.DomainEvent {
				e := event("k", 1)
				spoil(&e)
				return e
			}
			large := spoiled(func(e *events.DomainEvent) { e.Data = []byte(`"` + strings.Repeat("x", 400) + `"`) })
			for name, c := range map[string]struct {
				log  *Log
				bad  events.DomainEvent
				want error
				says string
			}{
				"no aggregate id": {f.log, spoiled(func(e *events.DomainEvent) { e.AggregateID = "" }), events.ErrInvalidEvent, "aggregate_id"},
				"NUL in the key":  {f.log, spoiled(func(e *events.DomainEvent) { e.AggregateID = "a\x00b" }), events.ErrInvalidEvent, `'\x00'`},
				"no UTF-8":        {f.log, spoiled(func(e *events.DomainEvent) { e.PartitionKey = "\xff" }), events.ErrInvalidEvent, "partition_key"},
				"no JSON":         {f.log, spoiled(func(e *events.DomainEvent) { e.Data = []byte(`{`) }), events.ErrInvalidEvent, "data"},
				"no id":           {f.log, spoiled(func(e *events.DomainEvent) { e.EventID = uuid.Nil }), events.ErrInvalidEvent, "event_id"},
				"too large":       {small, large, events.ErrTooLarge, "limit is 400"},
				"unusable topic":  {wild, event("k", 1), nil, "LogConfig.Topic"},
			} {
				good := event("k", 1)
				f.tx(func(tx pgx.Tx) error {
					for _, evs := range [][]events.DomainEvent{{c.bad}, {good, c.bad}, {good, c.bad, good}} {
						err := c.log.Append(t.Context(), tx, evs...)
						if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
							t.Errorf("%s, one of %d: %v, want one that says %q", name, len(evs), err, c.says)
						}
						if strings.Contains(fmt.Sprint(err), "xxxx") {
							t.Errorf("%s: the error holds the payload", name)
						}
					}
					return f.log.Append(t.Context(), tx, event("after", 1)) // tx is as it was
				})
			}
			if n := f.count(`SELECT count(*) FROM ` + f.table("outbox") + ` WHERE partition_key <> 'after'`); n != 0 {
				t.Errorf("%d events written by calls that were refused", n)
			}
			if n := f.count(`SELECT count(*) FROM ` + f.table("outbox")); n != 7 {
				t.Errorf("%d events written after the refusals, want 7", n)
			}
		})
	}
}

// An append without a live transaction is refused, and writes nothing into
// whatever the connection does by then.
func TestAppendNeedsATransaction(t *testing.T) {
	t.Parallel()
	f, ctx := setUp(t, testkit.PG15), t.Context()
	refused := func(what string, tx pgx.Tx) {
		t.Helper()
		for n := 1; n <= 2; n++ {
			evs := []events.DomainEvent{event("k", 1), event("k", 2)}[:n]
			if err := f.log.Append(ctx, tx, evs...); !errors.Is(err, ErrNoTransaction) {
				t.Errorf("%s, %d events: %v, want ErrNoTransaction", what, n, err)
			}
		}
	}
	refused("nil", nil)
	for _, commit := range []bool{true, false} {
		conn := f.session(testkit.PG15)
		tx := f.begin(conn)
		nested, err := tx.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		f.commit(nested)
		refused("a released savepoint", nested)
		end := tx.Rollback
		if commit {
			end = tx.Commit
		}
		if err := end(ctx); err != nil {
			t.Fatal(err)
		}
		refused("an ended transaction", tx)
		next := f.begin(conn) // the connection is in another by now
		refused("an ended transaction, its connection in another", tx)
		f.commit(next)
	}
	pooled, err := f.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f.commit(pooled)
	refused("an ended transaction of a pool", pooled)
	if n := f.count(`SELECT count(*) FROM ` + f.table("outbox")); n != 0 {
		t.Errorf("%d events written", n)
	}
}

// What the database refuses is an error that says what to do, and aborts the
// transaction as any failed statement does.
func TestAppendExplainsTheDatabasesAnswer(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			f, ctx := setUp(t, which), t.Context()
			role := f.schema + "_app"
			f.role(role)
			missing, err := NewLog(LogConfig{Schema: f.schema + "_not"})
			if err != nil {
				t.Fatal(err)
			}
			for n := 1; n <= 2; n++ {
				evs := []events.DomainEvent{event("k", 1), event("k", 2)}[:n]
				for name, c := range map[string]struct {
					log    *Log
					before string
					want   error
					says   string
				}{
					"not migrated": {missing, ``, migrations.ErrNotMigrated, "migrations.Up"},
					"no privilege": {f.log, `SET LOCAL ROLE ` + role, ErrMissingPrivilege, "grant"},
					"read only":    {f.log, `SET TRANSACTION READ ONLY`, nil, "read-only"},
				} {
					tx, err := f.pool.Begin(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := tx.Exec(ctx, c.before); err != nil {
						t.Fatal(err)
					}
					err = c.log.Append(ctx, tx, evs...)
					if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
						t.Errorf("%s, %d events: %v, want one that says %q", name, n, err, c.says)
					}
					if err := f.log.Append(ctx, tx, evs...); err == nil {
						t.Errorf("%s, %d events: the transaction goes on after a failed statement", name, n)
					}
					if err := tx.Commit(ctx); !errors.Is(err, pgx.ErrTxCommitRollback) {
						t.Errorf("%s: commit of the aborted transaction: %v", name, err)
					}
				}
			}
		})
	}
}

// role makes a role that may do nothing yet.
func (f *fixture) role(name string, grants ...string) {
	f.t.Helper()
	f.exec(`CREATE ROLE ` + name)
	pool := f.pool
	f.t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + name, `DROP ROLE ` + name} {
			if _, err := pool.Exec(context.Background(), sql); err != nil {
				f.t.Error(err)
			}
		}
	})
	for _, g := range grants {
		f.exec(g + ` TO ` + name)
	}
}

// The application's role needs these privileges and no more; it cannot give a
// row an xid or an id.
func TestAppendWithTheApplicationsPrivileges(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		role := f.schema + "_app"
		f.role(role, `GRANT USAGE ON SCHEMA `+f.schema, `GRANT USAGE ON SEQUENCE `+f.table("outbox_id"),
			`GRANT INSERT (`+appendColumns+`) ON `+f.table("outbox"))
		as := func(do func(tx pgx.Tx) error) error {
			return pgx.BeginFunc(t.Context(), f.pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), `SET LOCAL ROLE `+role); err != nil {
					return err
				}
				return do(tx)
			})
		}
		for n := range 3 {
			evs := []events.DomainEvent{event("k", 1), event("k", 2), event("k", 3)}[:n+1]
			if err := as(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, evs...) }); err != nil {
				t.Errorf("append %d events: %v", n+1, err)
			}
		}
		if n := f.count(`SELECT count(*) FROM ` + f.table("outbox")); n != 6 {
			t.Errorf("%d events written, want 6", n)
		}
		for _, forbidden := range []string{
			`INSERT INTO ` + f.table("outbox") + ` (xid, ` + appendColumns + `) SELECT '1', ` + appendColumns + ` FROM ` + f.table("outbox"),
			`INSERT INTO ` + f.table("outbox") + ` (id) VALUES (1)`,
			`SELECT payload FROM ` + f.table("outbox"),
			`UPDATE ` + f.table("outbox") + ` SET topic = ''`,
			`DELETE FROM ` + f.table("outbox"),
		} {
			err := as(func(tx pgx.Tx) error { _, err := tx.Exec(t.Context(), forbidden); return err })
			if !errors.Is(explain(f.schema, err), ErrMissingPrivilege) {
				t.Errorf("%.40s: %v, want a missing privilege", forbidden, err)
			}
		}
	})
}

// A Log is used by several goroutines at once, and what a savepoint takes back
// is not in the log.
func TestAppendFromManyGoroutines(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	ctx := t.Context()
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 10 {
				undo := errors.New("undo")
				err := pgx.BeginFunc(ctx, f.pool, func(tx pgx.Tx) error {
					_ = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
						if err := f.log.Append(ctx, tx, event("undone", i), event("undone", i)); err != nil {
							return err
						}
						return undo
					})
					if i%2 == 0 {
						return f.log.Append(ctx, tx, event(fmt.Sprint("g", g), i))
					}
					return f.log.Append(ctx, tx, event(fmt.Sprint("g", g), i), event(fmt.Sprint("g", g), i))
				})
				if err != nil {
					t.Errorf("goroutine %d: %v", g, err)
				}
			}
		})
	}
	all.Wait()
	if n := f.count(`SELECT count(*) FROM ` + f.table("outbox")); n != 8*15 {
		t.Errorf("%d events in the log, want %d", n, 8*15)
	}
	for _, row := range f.rows() {
		if e, err := events.Decode(row.Payload); err != nil || e.EventID != row.EventID || e.AggregateID != row.Key {
			t.Fatalf("row %s of key %s holds the document of %s: %v", row.EventID, row.Key, e.EventID, err)
		}
	}
}
