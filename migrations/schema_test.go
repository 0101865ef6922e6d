package migrations_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

func TestCheckSchema(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"postbus", "a", "_", "a1", "my_app_2", strings.Repeat("a", 63), "pg", "select"} {
		if err := migrations.CheckSchema(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", " ", "A", "aB", "1a", "a-b", "a.b", `a"b`, "a'b", "a;b", "a b", "a\n", "\na", "é", "a\x00", strings.Repeat("a", 64),
		"pg_catalog", "pg_toast", "pg_", "information_schema", "{schema}", "$user"} {
		err := migrations.CheckSchema(bad)
		if !errors.Is(err, migrations.ErrInvalidSchema) {
			t.Errorf("%q: %v, want ErrInvalidSchema", bad, err)
			continue
		}
		if len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%q: an error that no log line holds: %q", bad, err)
		}
	}
}

// A name that is accepted is one that Postgres takes, quoted or not, and keeps as
// it is.
func TestCheckSchemaAgainstPostgres(t *testing.T) {
	t.Parallel()
	pool := testkit.Postgres(t, testkit.PG15)
	for _, name := range []string{"a", "_", "a1", "my_app_2", strings.Repeat("a", 63)} {
		var kept bool
		if err := pool.QueryRow(t.Context(), `SELECT $1::text::name::text = $1 AND parse_ident($1) = ARRAY[$1]`, name).Scan(&kept); err != nil || !kept {
			t.Errorf("%q is another name to Postgres (error %v)", name, err)
		}
	}
}

func FuzzCheckSchema(f *testing.F) {
	for _, s := range []string{"postbus", "a\n", `a"b`, "pg_x", "Ａ", strings.Repeat("a", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		err := migrations.CheckSchema(s)
		if err != nil {
			if !errors.Is(err, migrations.ErrInvalidSchema) {
				t.Fatalf("%q: %v, want ErrInvalidSchema", s, err)
			}
			return
		}
		if s == "" || len(s) > 63 || strings.HasPrefix(s, "pg_") || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			t.Fatalf("%q is accepted", s)
		}
		if got := (pgx.Identifier{s}).Sanitize(); got != `"`+s+`"` {
			t.Fatalf("%q needs more than quotes: %s", s, got)
		}
	})
}
