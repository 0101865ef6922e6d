package outbox

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// What waiting cannot mend ends Run at once, with one sentence that says what to do.
func TestRunRefusesWhatWaitingCannotMend(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	refused := func(what string, pool *pgxpool.Pool, cfg RelayConfig, want error, says string) {
		t.Helper()
		relay, err := NewRelay(pool, newSink(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		err = relay.Run(t.Context())
		if err == nil || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), cfg.Name) {
			t.Errorf("%s: %v, want one that names the relay and says %q", what, err, says)
		}
	}
	elsewhere := f.config()
	elsewhere.Schema = f.schema + "_not"
	refused("no migration", f.pool, elsewhere, migrations.ErrNotMigrated, "migrations.Up")

	nowhere, err := pgxpool.New(t.Context(), "postgres://postbus:secret@127.0.0.1:1/postbus?connect_timeout=2")
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close()
	refused("no server", nowhere, f.config(), nil, "reach the database")

	role := f.schema + "_relay"
	f.role(role, `GRANT USAGE ON SCHEMA `+f.schema, `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA `+f.schema)
	poor := testkit.Postgres(t, testkit.PG15, func(cfg *pgxpool.Config) { cfg.ConnConfig.RuntimeParams["role"] = role })
	refused("no privilege on the sequence", poor, f.config(), ErrMissingPrivilege, "GRANT SELECT ON SEQUENCE")

	f.exec(`UPDATE ` + f.table("outbox_source") + ` SET system_identifier = 1`)
	refused("another cluster's log", f.pool, f.config(), ErrOtherCluster, "cluster 1")
	f.exec(`UPDATE ` + f.table("outbox_source") + ` SET system_identifier = (SELECT system_identifier FROM pg_control_system())`)

	f.exec(`ALTER SEQUENCE ` + f.table("outbox_id") + ` CACHE 10`)
	refused("ids in blocks", f.pool, f.config(), ErrInvalidConfig, "CACHE 1")
	f.exec(`ALTER SEQUENCE ` + f.table("outbox_id") + ` CACHE 1`)

	f.exec(`INSERT INTO ` + f.table("schema_migration") + ` VALUES (1000, 'later')`)
	refused("a schema from the future", f.pool, f.config(), migrations.ErrFromTheFuture, "upgrade the program")
}

func TestRunTwiceOnOneRelay(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	relay, err := NewRelay(f.as(testkit.Relay), s, f.config())
	if err != nil {
		t.Fatal(err)
	}
	first := async(func() error { return relay.Run(t.Context()) })
	f.add("k", 1, 1)
	testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == 1 }, "the first Run works")
	if err := relay.Run(t.Context()); !errors.Is(err, ErrAlreadyRunning) {
		t.Errorf("a second Run: %v, want ErrAlreadyRunning", err)
	}
	select {
	case err := <-first:
		t.Errorf("the first Run ended: %v", err)
	default:
	}
}

func TestNewRelayReportsAllFaults(t *testing.T) {
	t.Parallel()
	var none *sink
	_, err := NewRelay(nil, none, RelayConfig{Name: "No Name", Schema: `x"`, Lanes: -1, Window: 1 << 30, Lease: time.Millisecond, Policy: 9, StartAt: -2,
		Retry: RetryConfig{Multiplier: -1}})
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatalf("%v, want ErrInvalidConfig", err)
	}
	for _, says := range []string{"the pool is nil", "the publisher is nil", "RelayConfig.Name", "RelayConfig.Schema", "RelayConfig.Lanes", "RelayConfig.Window",
		"RelayConfig.Lease", "RelayConfig.Policy", "RelayConfig.StartAt", "RelayConfig.Retry.Multiplier"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("nothing about %s in: %v", says, err)
		}
	}
	if _, err := NewRelay(nil, nil, RelayConfig{Name: "x"}); err == nil || !strings.Contains(err.Error(), "the publisher is nil") {
		t.Errorf("nil publisher: %v", err)
	}
}
