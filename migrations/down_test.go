package migrations_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

func up(t *testing.T, pool *pgxpool.Pool, schema string) {
	t.Helper()
	if err := migrations.Up(t.Context(), pool, schema); err != nil {
		t.Fatal(err)
	}
}

// What Up has made goes, what was there before stays, and Up can begin anew.
func TestDownRemovesWhatUpMade(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			pool := testkit.Postgres(t, which)
			for _, c := range []struct {
				name   string
				schema string
				before string // with %[1]s for the schema
				stays  bool
			}{
				{"a schema of its own", testkit.Schema(t, which), ``, false},
				{"a schema that was there", testkit.CreateSchema(t, which), ``, true},
				{"a shared schema", testkit.CreateSchema(t, which), `CREATE TABLE %[1]s.orders (id bigserial PRIMARY KEY, outbox text); CREATE VIEW %[1]s.v AS SELECT * FROM %[1]s.orders`, true},
			} {
				if c.before != "" {
					exec(t, pool, fmt.Sprintf(c.before, c.schema))
				}
				before := catalog(t, pool, c.schema)
				var first []string
				for range 2 {
					up(t, pool, c.schema)
					if first == nil {
						first = catalog(t, pool, c.schema)
					}
					same(t, c.name+", up again", catalog(t, pool, c.schema), first)
					if err := migrations.Down(t.Context(), pool, c.schema, migrations.Latest); err != nil {
						t.Errorf("%s, down to where it is: %v", c.name, err)
					}
					if err := migrations.Check(t.Context(), pool, c.schema); err != nil {
						t.Errorf("%s: %v", c.name, err)
					}
					if err := migrations.Down(t.Context(), pool, c.schema, 0); err != nil {
						t.Fatalf("%s: %v", c.name, err)
					}
					same(t, c.name, catalog(t, pool, c.schema), before)
					var there bool
					if err := pool.QueryRow(t.Context(), `SELECT to_regnamespace($1) IS NOT NULL`, c.schema).Scan(&there); err != nil || there != c.stays {
						t.Errorf("%s: the schema is there: %v, want %v (%v)", c.name, there, c.stays, err)
					}
					if err := migrations.Down(t.Context(), pool, c.schema, 0); err != nil {
						t.Errorf("%s, with nothing to do: %v", c.name, err)
					}
				}
			}
		})
	}
}

// A schema that Up has made, and somebody else has moved into, stays for them.
func TestDownLeavesASchemaThatOthersUse(t *testing.T) {
	t.Parallel()
	pool, schema := testkit.Postgres(t, testkit.PG15), testkit.Schema(t)
	up(t, pool, schema)
	exec(t, pool, `CREATE TABLE `+schema+`.theirs ()`)
	if err := migrations.Down(t.Context(), pool, schema, 0); err != nil {
		t.Fatal(err)
	}
	if left := objects(t, pool, schema); len(left) != 1 || left[0] != "theirs" {
		t.Errorf("left: %v", left)
	}
}

// What depends on our tables is not dropped with them, and nothing else is then.
func TestDownIsAtomic(t *testing.T) {
	t.Parallel()
	pool, schema := testkit.Postgres(t, testkit.PG15), testkit.Schema(t)
	up(t, pool, schema)
	exec(t, pool, `CREATE VIEW `+schema+`.mine AS SELECT topic FROM `+schema+`.outbox`)
	before := catalog(t, pool, schema)
	err := migrations.Down(t.Context(), pool, schema, 0, migrations.DiscardEvents, migrations.ForgetHandled)
	if err == nil || !strings.Contains(err.Error(), schema+".mine") {
		t.Errorf("down under a view: %v, want one that names it", err)
	}
	same(t, "after the refusal", catalog(t, pool, schema), before)
	if err := migrations.Check(t.Context(), pool, schema); err != nil {
		t.Error(err)
	}
}

func TestDownTwentyAtOnce(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			pool := testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.MaxConns = 20 })
			schema := testkit.Schema(t, which)
			for range 3 {
				up(t, pool, schema)
				var all sync.WaitGroup
				start := make(chan struct{})
				for i := range 20 {
					all.Go(func() {
						<-start
						if err := migrations.Down(t.Context(), pool, schema, 0); err != nil {
							t.Errorf("process %d: %v", i, err)
						}
					})
				}
				close(start)
				all.Wait()
				if left := objects(t, pool, schema); len(left) != 0 {
					t.Errorf("left: %v", left)
				}
			}
		})
	}
}

func TestDownRefusesBadArguments(t *testing.T) {
	t.Parallel()
	pool, schema := testkit.Postgres(t, testkit.PG15), testkit.Schema(t)
	refused := func(err, want error, says string) {
		t.Helper()
		if err == nil || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want one that says %q", err, says)
		}
	}
	refused(migrations.Down(t.Context(), nil, schema, 0), nil, "pool is nil")
	refused(migrations.Down(t.Context(), pool, `x"`, 0), migrations.ErrInvalidSchema, "")
	refused(migrations.Down(t.Context(), pool, schema, -1), nil, "no such version")
	refused(migrations.Down(t.Context(), pool, schema, migrations.Latest+1), nil, "no such version")
	refused(migrations.Down(t.Context(), pool, schema, 0, 7), nil, "option 7")
	refused(migrations.Down(t.Context(), pool, schema, 1), migrations.ErrNotMigrated, "migrations.Up")
	up(t, pool, schema)
	exec(t, pool, fmt.Sprintf(`INSERT INTO %s.schema_migration VALUES (%d, 'later')`, schema, migrations.Latest+1))
	refused(migrations.Down(t.Context(), pool, schema, 0), migrations.ErrFromTheFuture, "upgrade the program")
}

// written is a log with events in it, and the relays that read them.
type written struct {
	t      *testing.T
	pool   *pgxpool.Pool
	schema string
	log    *outbox.Log
}

func newWritten(t *testing.T, which testkit.Server) *written {
	t.Helper()
	w := &written{t: t, pool: testkit.Postgres(t, which), schema: testkit.Schema(t, which)}
	up(t, w.pool, w.schema)
	var err error
	if w.log, err = outbox.NewLog(outbox.LogConfig{Schema: w.schema}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *written) append(tx pgx.Tx, key string) error {
	return w.log.Append(w.t.Context(), tx, events.DomainEvent{EventID: events.NewID(), EventType: "order.changed", SchemaVersion: 1,
		AggregateID: key, Timestamp: time.Now(), CorrelationID: "test", Data: []byte(`{}`)})
}

func (w *written) add(key string) {
	w.t.Helper()
	if err := pgx.BeginFunc(w.t.Context(), w.pool, func(tx pgx.Tx) error { return w.append(tx, key) }); err != nil {
		w.t.Fatal(err)
	}
}

// relay runs until it is through, or has given up what it cannot publish.
func (w *written) relay(name string, accept bool) {
	w.t.Helper()
	relay, err := outbox.NewRelay(w.pool, publisher(accept), outbox.RelayConfig{Name: name, Schema: w.schema, PollInterval: 10 * time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	testkit.Eventually(w.t, 20*time.Second, func() bool {
		var through bool
		err := w.pool.QueryRow(ctx, `SELECT coalesce((SELECT l.last_id = s.upper_id AND s.upper_id >= (SELECT max(id) FROM `+w.schema+`.outbox)
			FROM `+w.schema+`.relay_link AS l JOIN `+w.schema+`.relay_link AS s ON s.relay = l.relay AND s.n = l.round
			WHERE l.relay = $1 ORDER BY l.n DESC LIMIT 1), false)`, name).Scan(&through)
		return err == nil && through
	}, "relay %s is through", name)
	cancel()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
}

func (w *written) refused(says string, options ...migrations.DownOption) {
	w.t.Helper()
	before := catalog(w.t, w.pool, w.schema)
	err := migrations.Down(w.t.Context(), w.pool, w.schema, 0, options...)
	if !errors.Is(err, migrations.ErrWouldLose) || !strings.Contains(err.Error(), says) {
		w.t.Errorf("down: %v, want ErrWouldLose that says %q", err, says)
	}
	same(w.t, "after the refusal", catalog(w.t, w.pool, w.schema), before)
}

// publisher accepts everything, or refuses it for good.
type publisher bool

func (p publisher) Publish(string, ...*message.Message) error {
	if p {
		return nil
	}
	return fmt.Errorf("refused: %w", outbox.ErrPermanent)
}

func (publisher) Close() error { return nil }

// Down never loses an event that nobody has said may go.
func TestDownRefusesToLoseEvents(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			w := newWritten(t, which)
			w.add("a")
			w.refused("no relay has ever read the log")
			w.relay("one", true)
			if err := migrations.Down(t.Context(), w.pool, w.schema, 0); err != nil {
				t.Errorf("down, all published: %v", err)
			}

			w = newWritten(t, which)
			w.add("a")
			w.relay("one", true)
			w.add("b")
			w.relay("two", true)
			w.refused("events (one has not settled 1)")
			w.refused("migrations.DiscardEvents")
			w.relay("one", true)
			exec(t, w.pool, `INSERT INTO `+w.schema+`.inbox VALUES ('mail.receipt', gen_random_uuid(), 'handled')`)
			w.refused("migrations.ForgetHandled", migrations.DiscardEvents)
			if err := migrations.Down(t.Context(), w.pool, w.schema, 0, migrations.ForgetHandled); err != nil {
				t.Errorf("down, all published and the inbox may go: %v", err)
			}

			w = newWritten(t, which)
			w.add("a")
			w.relay("one", false)
			w.refused("1 are parked", migrations.ForgetHandled)
			exec(t, w.pool, `UPDATE `+w.schema+`.relay_link SET system_identifier = 1 WHERE system_identifier IS NOT NULL`)
			w.refused("one has not settled 1; 1 are parked")
			if err := migrations.Down(t.Context(), w.pool, w.schema, 0, migrations.DiscardEvents); err != nil {
				t.Errorf("down, the events may go: %v", err)
			}
		})
	}
}

// An event whose transaction is still open is waited for, not for long, and counts.
func TestDownSeesWhatIsCommittedMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWritten(t, testkit.PG15)
	w.add("a")
	w.relay("one", true)
	open, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.append(open, "late"); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Down(t.Context(), w.pool, w.schema, 0); err == nil || !strings.Contains(err.Error(), "stop the programs") {
		t.Errorf("down, beside an open transaction: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- migrations.Down(t.Context(), w.pool, w.schema, 0) }()
	testkit.Eventually(t, 20*time.Second, func() bool {
		var waits bool
		err := w.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = $1::regclass)`, w.schema+".outbox").Scan(&waits)
		return err == nil && waits
	}, "Down waits for the table")
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, migrations.ErrWouldLose) {
		t.Errorf("down, after the commit: %v, want ErrWouldLose", err)
	}
}
