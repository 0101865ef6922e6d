package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// refused expects Run to end at once, with an error that is want and says all of says.
func (f *fixture) refused(pool *pgxpool.Pool, want error, says ...string) {
	f.t.Helper()
	relay, err := NewRelay(pool, newSink(), f.config())
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	err = relay.Run(ctx)
	if err == nil || ctx.Err() != nil || !errors.Is(err, want) {
		f.t.Errorf("Run: %v, want one that is %q", err, want)
		return
	}
	for _, s := range append(says, `"test"`) {
		if !strings.Contains(err.Error(), s) {
			f.t.Errorf("Run: nothing about %q in: %v", s, err)
		}
	}
}

// A role without privileges is told all that it lacks, as statements to run; with
// these, and no others, a relay does all of its work.
func TestStartNamesEveryMissingGrant(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		role := f.schema + "_relay"
		f.role(role)
		poor := testkit.Postgres(t, which, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = role })
		f.refused(poor, ErrMissingPrivilege, "GRANT USAGE ON SCHEMA "+f.schema+" TO "+role+";", "run, as the schema's owner")

		err := (&database{pool: poor, schema: f.schema, timeout: 20 * time.Second}).check(t.Context())
		_, list, _ := strings.Cut(fmt.Sprint(err), "owner: ")
		statements := strings.Split(strings.TrimSuffix(list, ";"), "; ")
		if len(statements) != len(grantsOfRelay) {
			t.Fatalf("%d statements, want %d: %v", len(statements), len(grantsOfRelay), err)
		}
		for _, s := range statements {
			f.exec(s)
		}
		s := newSink()
		s.setRule(func(m *Message, n int) Result {
			if m.Key == "bad" {
				return Result{Permanent, errRefused}
			}
			return Result{Status: Done}
		})
		f.add("k", 1, 3)
		f.add("bad", 1, 2)
		g := *f
		g.pool = poor
		stop := g.start(s, f.config())
		testkit.Eventually(t, 20*time.Second, func() bool {
			return s.distinct() == 3 && f.count(`SELECT count(*) FROM `+f.table("parked")) == 2
		}, "the relay publishes, and puts aside")
		if err := stop(); err != nil {
			t.Error(err)
		}

		// What is missing by itself is named by itself.
		for i, st := range statements {
			what, _, _ := strings.Cut(strings.TrimPrefix(st, "GRANT "), " TO ")
			f.exec("REVOKE " + what + " FROM " + role)
			f.refused(poor, ErrMissingPrivilege, statements[i]+";")
			f.exec(st)
		}
	})
}

func TestStartRefusesAStandby(t *testing.T) {
	t.Parallel()
	primary := testkit.PrivatePostgres(t)
	f := &fixture{t: t, schema: "postbus", pool: testkit.Pool(t, primary.URL())}
	if err := migrations.Up(t.Context(), f.pool, f.schema); err != nil {
		t.Fatal(err)
	}
	standby := primary.Standby(t)
	f.refused(testkit.Pool(t, standby.URL()), ErrReadReplica, "connect to the primary")

	f.pool = testkit.Pool(t, primary.URL())
	// Promoted, it is another incarnation of the same log, which a relay goes on with.
	before, err := f.database().source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.pool = testkit.Pool(t, standby.URL())
	f.exec(`SELECT pg_promote()`) // which waits for it
	if err := f.database().check(t.Context()); err != nil {
		t.Error(err)
	}
	after, err := f.database().source(t.Context())
	if err != nil || before[:36] != after[:36] || before[36:] != "/1" || after[36:] != "/2" {
		t.Errorf("the log was %s, is %s: %v", before, after, err)
	}
}

func TestStartRefusesASequenceBehind(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, _ testkit.Server) {
		f.add("k", 1, 5)
		f.exec(`SELECT setval('` + f.table("outbox_id") + `', 3)`)
		f.refused(f.pool, ErrSequenceBehind, "up to 5", "stands at 3", "outbox.Rebase")
		f.exec(`ALTER SEQUENCE ` + f.table("outbox_id") + ` RESTART`)
		f.refused(f.pool, ErrSequenceBehind, "stands at 0")

		// The log is empty, but a position has passed the ids.
		f.exec(`SELECT setval('` + f.table("outbox_id") + `', 5)`)
		s := newSink()
		stop := f.start(s, f.config())
		testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == 5 }, "all is published")
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		f.exec(`DELETE FROM ` + f.table("outbox"))
		f.exec(`SELECT setval('` + f.table("outbox_id") + `', 4)`)
		f.refused(f.pool, ErrSequenceBehind, "up to 5", "stands at 4")
	})
}

// Appends and rounds that happen between the start's looks are no reason to refuse.
func TestStartRefusesNothingWhileEventsAreAppended(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.start(newSink(), f.config())
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	defer writing.Wait()
	defer stop()
	for i := range 4 {
		writing.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				f.tx(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, event(fmt.Sprint("k", i), n)) })
			}
		})
	}
	for range 200 {
		if err := f.database().check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStartRefusesAnotherClustersNumbers(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.add("k", 1, 3)
	s := newSink()
	stop := f.start(s, f.config())
	testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == 3 }, "all is published")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ damage, repair, says string }{
		{`UPDATE ` + f.table("outbox_source") + ` SET system_identifier = 1`,
			`UPDATE ` + f.table("outbox_source") + ` SET system_identifier = (SELECT system_identifier FROM pg_control_system())`, "the log was written in cluster 1"},
		{`UPDATE ` + f.table("relay_link") + ` SET system_identifier = 2 WHERE n = round`,
			`UPDATE ` + f.table("relay_link") + ` SET system_identifier = (SELECT system_identifier FROM pg_control_system()) WHERE n = round`, "a position was written in cluster 2"},
		{`UPDATE ` + f.table("outbox") + ` SET xid = '1099511627776' WHERE id = 2`,
			`UPDATE ` + f.table("outbox") + ` SET xid = '5' WHERE id = 2`, "transaction 1099511627776"},
		{`UPDATE ` + f.table("relay_link") + ` SET snapshot = '7:1099511627777:' WHERE n = round`,
			`UPDATE ` + f.table("relay_link") + ` SET snapshot = '7:7:' WHERE n = round`, "transactions up to 1099511627776"},
		{`DELETE FROM ` + f.table("outbox_source"), ``, "outbox_source"},
	} {
		f.exec(c.damage)
		f.refused(f.pool, ErrOtherCluster, c.says, "stop all relays and durable handlers, then run outbox.Rebase once")
		if c.repair != "" {
			f.exec(c.repair)
			if err := f.database().check(t.Context()); err != nil {
				t.Errorf("repaired: %v", err)
			}
		}
	}
}
