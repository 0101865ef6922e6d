package migrations_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

var everybody = migrations.Roles{App: "app", Relay: "relay", Retention: "retention", Consumer: "consumer", Watcher: "watcher", Desk: "desk", Rebase: "rebase"}

// The statements run, as often as one likes, also for roles whose names need quotes
// and for one that does several things; those without a name are left out.
func TestGrantsRun(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			pool, schema := testkit.Postgres(t, which), testkit.Schema(t, which)
			up(t, pool, schema)
			one, two := schema+`_App "1" $1`, schema+"_two"
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback(t.Context()) // roles belong to the whole server
			run := func(sql string) {
				t.Helper()
				if _, err := tx.Conn().PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
					t.Fatalf("%v:\n%s", err, sql)
				}
			}
			run(`CREATE ROLE "` + strings.ReplaceAll(one, `"`, `""`) + `"; CREATE ROLE ` + two)
			for _, roles := range []migrations.Roles{
				{App: one}, {Relay: one, Retention: one}, {Consumer: one, App: one},
				{App: one, Relay: two, Retention: two, Consumer: one, Watcher: two, Desk: two, Rebase: two},
			} {
				grants, err := migrations.Grants(schema, roles)
				if err != nil {
					t.Fatal(err)
				}
				run(grants)
				run(grants)
				if strings.Contains(grants, "{") || strings.Contains(grants, `""`+";") {
					t.Errorf("something is not filled in:\n%s", grants)
				}
			}
			var all, some bool
			if err := tx.QueryRow(t.Context(), `SELECT has_table_privilege($1, $2, 'INSERT'), has_column_privilege($1, $2, 'payload', 'INSERT')
				AND NOT has_column_privilege($1, $2, 'xid', 'INSERT') AND NOT has_column_privilege($1, $2, 'id', 'INSERT')`, one, schema+".outbox").Scan(&all, &some); err != nil || all || !some {
				t.Errorf("the application may insert everything: %v, what it needs and no more: %v (%v)", all, some, err)
			}
		})
	}
}

func TestGrantsRefuseBadArguments(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		schema string
		roles  migrations.Roles
		want   error
		says   string
	}{
		{`x"`, everybody, migrations.ErrInvalidSchema, ""},
		{"", migrations.Roles{}, migrations.ErrInvalidRole, "at least one"},
		{"", migrations.Roles{App: "postbus"}, migrations.ErrInvalidRole, "Roles.App has the name of the schema"},
		{"", migrations.Roles{Relay: "public"}, migrations.ErrInvalidRole, "Roles.Relay"},
		{"", migrations.Roles{Desk: "a\x00"}, migrations.ErrInvalidRole, "Roles.Desk"},
		{"", migrations.Roles{App: "none", Desk: strings.Repeat("x", 64)}, migrations.ErrInvalidRole, "Roles.Desk"},
	} {
		if _, err := migrations.Grants(c.schema, c.roles); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q %+v: %v, want one that says %q", c.schema, c.roles, err, c.says)
		}
	}
}

// What docs/operations.md shows is what Grants gives.
func TestGrantsAreDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	grants, err := migrations.Grants("", everybody)
	if err != nil {
		t.Fatal(err)
	}
	if want := "```sql\n" + strings.ReplaceAll(grants, `"`, "") + "```\n"; !strings.Contains(string(page), want) {
		t.Errorf("docs/operations.md does not have this block:\n%s", want)
	}
}
