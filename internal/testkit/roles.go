package testkit

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/pooler"
	"github.com/postbus/postbus/migrations"
)

// Role is one of the roles that migrations.Grants knows, as it is named on the
// servers of the tests.
type Role string

// Our code under test runs as one of these; what a test itself does, as the superuser.
// Relay also runs retention, Admin also watches and rebases.
const (
	App      Role = "postbus_test_app"
	Relay    Role = "postbus_test_relay"
	Consumer Role = "postbus_test_consumer"
	Admin    Role = "postbus_test_admin"
)

// rolesSQL creates those that are missing. Several processes do it at once: they
// take turns.
const rolesSQL = `
DO $$
DECLARE
	name text;
BEGIN
	PERFORM pg_advisory_xact_lock(8157463049127);
	FOREACH name IN ARRAY ARRAY['%s', '%s', '%s', '%s'] LOOP
		IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
			EXECUTE format('CREATE ROLE %%I', name);
		END IF;
	END LOOP;
END
$$`

// Grant gives the roles what migrations.Grants says, in a migrated schema.
func Grant(t testing.TB, pool *pgxpool.Pool, schema string) {
	t.Helper()
	grants, err := migrations.Grants(schema, migrations.Roles{App: string(App), Relay: string(Relay), Retention: string(Relay),
		Consumer: string(Consumer), Watcher: string(Admin), Desk: string(Admin), Rebase: string(Admin)})
	if err != nil {
		t.Fatal(err)
	}
	createRoles(t, pool)
	run(t, pool, grants)
}

func createRoles(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	run(t, pool, fmt.Sprintf(rolesSQL, App, Relay, Consumer, Admin))
}

// run runs several statements at once.
func run(t testing.TB, pool *pgxpool.Pool, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		_, err := conn.Conn().PgConn().Exec(ctx, sql).ReadAll()
		return err
	})
	if err != nil {
		t.Fatalf("give the tests' roles what they need: %v", err)
	}
}

// GrantAll gives the roles everything on tables of a test's own, which stand for those
// of an application.
func GrantAll(t testing.TB, pool *pgxpool.Pool, tables ...string) {
	t.Helper()
	createRoles(t, pool)
	run(t, pool, fmt.Sprintf(`GRANT ALL ON %s TO %s, %s, %s, %s`, strings.Join(tables, ", "), App, Relay, Consumer, Admin))
}

// As is a pool like the given one, whose sessions have no privileges but the role's.
// Behind a pooler they keep those of its user: PgBouncer takes no role.
func As(t testing.TB, pool *pgxpool.Pool, role Role) *pgxpool.Pool {
	t.Helper()
	config := pool.Config()
	if !pooled(t, pool) {
		config.ConnConfig.RuntimeParams["role"] = string(role)
	}
	return open(t, config)
}

// AddressOf is the address of a pool that As has made, for a process of its own.
func AddressOf(pool *pgxpool.Pool) string {
	config := pool.Config()
	role := config.ConnConfig.RuntimeParams["role"]
	if role == "" {
		return config.ConnString() // behind a pooler
	}
	return config.ConnString() + "&role=" + role
}

// pooled tells whether a pooler stands before the server.
func pooled(t testing.TB, pool *pgxpool.Pool) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	is, err := pooler.Behind(ctx, pool)
	if err != nil {
		t.Fatalf("look for a pooler before Postgres: %v", err)
	}
	return is
}
