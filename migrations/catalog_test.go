package migrations_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// catalogSQL describes everything in a schema, with the schema's name left out.
const catalogSQL = `
SELECT replace(line, $1, '@') FROM (
	SELECT 'relation ' || relname || ' ' || relkind::text || ' ' || relpersistence::text || ' ' || coalesce(reloptions::text, '') AS line
	FROM pg_class WHERE relnamespace = to_regnamespace($1)
UNION ALL
	SELECT 'column ' || c.relname || ' ' || a.attnum || ' ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull ||
		' ' || a.attidentity::text || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
	FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
	WHERE c.relnamespace = to_regnamespace($1) AND c.relkind = 'r' AND a.attnum > 0
UNION ALL
	SELECT 'constraint ' || conname || ' ' || conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = to_regnamespace($1)
UNION ALL
	SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = $1
UNION ALL
	SELECT 'sequence ' || to_jsonb(s)::text FROM pg_sequences AS s WHERE schemaname = $1
UNION ALL
	SELECT 'owned ' || c.relname || ' ' || d.refobjid::regclass || ' ' || d.refobjsubid
	FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.objid
	WHERE c.relkind = 'S' AND d.deptype IN ('a', 'i') AND c.relnamespace = to_regnamespace($1)
UNION ALL
	SELECT 'function ' || oid::regprocedure || ' ' || prosrc FROM pg_proc WHERE pronamespace = to_regnamespace($1)
UNION ALL
	SELECT 'type ' || typname FROM pg_type WHERE typnamespace = to_regnamespace($1)
UNION ALL
	SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid WHERE c.relnamespace = to_regnamespace($1)
UNION ALL
	SELECT 'granted ' || relname || ' ' || relacl::text FROM pg_class WHERE relnamespace = to_regnamespace($1) AND relacl IS NOT NULL
) AS lines ORDER BY 1`

func catalog(t *testing.T, pool *pgxpool.Pool, schema string) []string {
	t.Helper()
	return lines(t, pool, catalogSQL, schema)
}

// applied is the list of what was applied, without when.
func applied(t *testing.T, pool *pgxpool.Pool, schema string) []string {
	t.Helper()
	return lines(t, pool, `SELECT version || ' ' || name FROM `+schema+`.schema_migration ORDER BY version`)
}

func lines(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// same says which lines only one of the two has.
func same(t *testing.T, what string, have, want []string) {
	t.Helper()
	for _, l := range have {
		if !slices.Contains(want, l) {
			t.Errorf("%s: one too many: %s", what, l)
		}
	}
	for _, l := range want {
		if !slices.Contains(have, l) {
			t.Errorf("%s: missing: %s", what, l)
		}
	}
	if strings.Join(have, "\n") != strings.Join(want, "\n") && !t.Failed() {
		t.Errorf("%s: in another order", what)
	}
}
