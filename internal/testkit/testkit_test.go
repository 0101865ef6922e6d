package testkit

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestEveryServerAnswersAndCleansUp(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, which := range []Server{PG15, PG18, PgBouncer} {
		var schema string
		t.Run(string(which), func(t *testing.T) {
			schema = CreateSchema(t, which)
			pool := Postgres(t, which)
			if _, err := pool.Exec(ctx, "CREATE TABLE "+schema+".kept AS SELECT 1 AS one"); err != nil {
				t.Fatal(err)
			}
		})
		var left int
		err := Postgres(t, which.direct()).QueryRow(ctx, "SELECT count(*) FROM pg_namespace WHERE nspname = $1", schema).Scan(&left)
		if err != nil || left != 0 {
			t.Errorf("%s: %d schemas left after the test, error %v", which, left, err)
		}
	}
}

func TestSchemaReportsWhoHoldsIt(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	schema := CreateSchema(t)
	pool := Postgres(t, PG15)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "CREATE TABLE "+schema+".held (id int)"); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "INSERT INTO "+schema+".held VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	if err := dropSchema(URL(t, PG15), schema, 200*time.Millisecond); err == nil || !strings.Contains(err.Error(), "INSERT INTO") {
		t.Errorf("the drop under a lock: got %v, want an error that shows the holder's statement", err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRedisKeysAreRemoved(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var prefix string
	t.Run("writes", func(t *testing.T) {
		prefix = Prefix(t)
		if err := Redis(t).Set(ctx, prefix+"key", "v", 0).Err(); err != nil {
			t.Fatal(err)
		}
	})
	if n, err := Redis(t).Exists(ctx, prefix+"key").Result(); err != nil || n != 0 {
		t.Errorf("after the test %d keys are left, error %v", n, err)
	}
}

func TestUniqueNameIsAnIdentifier(t *testing.T) {
	t.Parallel()
	valid := regexp.MustCompile(`^[a-z_][a-z0-9_]{0,39}$`)
	for _, name := range []string{"x", "Ümläut und Leerzeichen", "a/b/c", strings.Repeat("long", 30), "___"} {
		t.Run(name, func(t *testing.T) {
			a, b := uniqueName(t), uniqueName(t)
			if !valid.MatchString(a) || a == b {
				t.Errorf("got %q and %q", a, b)
			}
			if (pgx.Identifier{a}).Sanitize() != `"`+a+`"` {
				t.Errorf("%q needs escaping", a)
			}
		})
	}
}
