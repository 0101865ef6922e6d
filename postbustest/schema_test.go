package postbustest_test

import (
	"context"
	"regexp"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/postbustest"
)

func schemaExists(t testing.TB, name string) (yes bool) {
	t.Helper()
	pool := testkit.Postgres(t, testkit.PG15)
	if err := pool.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, name).Scan(&yes); err != nil {
		t.Fatal(err)
	}
	return yes
}

func TestSchemaIsTheTestsOwn(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PgBouncer} {
		var first, second string
		t.Run("Ä_ name, of THIS test which is longer than any identifier may be in PostgreSQL", func(t *testing.T) {
			pool := testkit.Postgres(t, which)
			first, second = postbustest.Schema(t, pool), postbustest.Schema(t, pool)
			if err := migrations.Check(t.Context(), pool, first); err != nil {
				t.Error(err)
			}
			if !schemaExists(t, second) {
				t.Errorf("schema %s does not exist", second)
			}
		})
		if first == second || !regexp.MustCompile(`^t_[a-z0-9_]{1,50}$`).MatchString(first) {
			t.Errorf("names %q and %q", first, second)
		}
		if schemaExists(t, first) || schemaExists(t, second) {
			t.Error("the schemas outlive their test")
		}
	}
}

// A test that closes its pool itself, before its cleanups run, leaves no trace.
func TestSchemaIsDroppedThoughThePoolIsClosed(t *testing.T) {
	t.Parallel()
	var name string
	asked := false
	t.Run("inner", func(t *testing.T) {
		config, err := pgxpool.ParseConfig(testkit.URL(t, testkit.PG15))
		if err != nil {
			t.Fatal(err)
		}
		password := config.ConnConfig.Password
		config.ConnConfig.Password = "another"
		config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error { asked = true; c.Password = password; return nil }
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		name = postbustest.Schema(t, pool)
		asked = false
	})
	if schemaExists(t, name) {
		t.Errorf("schema %s outlives its test", name)
	}
	if !asked {
		t.Error("the drop did not ask BeforeConnect")
	}
}

func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	mustFail(t, func(t testing.TB) { postbustest.Schema(t, nil) }, "pool is nil")
}
