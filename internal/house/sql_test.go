package house

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

var (
	sqlBlock = regexp.MustCompile("(?ms)^```sql\n(.*?)^```$")
	granted  = regexp.MustCompile(`(?m) TO (\w+);`)
)

// Every ```sql block under docs/ runs on a migrated schema. What somebody copies at
// three in the morning must not end in a syntax error.
func TestSQLInTheDocumentsRuns(t *testing.T) {
	pool := testkit.Postgres(t, testkit.PG15)
	schema := testkit.Schema(t)
	if err := migrations.Up(t.Context(), pool, schema); err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for _, doc := range documents(t) {
		for _, m := range sqlBlock.FindAllStringSubmatch(readDoc(t, doc), -1) {
			blocks++
			if err := tryOut(t.Context(), pool, schema, m[1]); err != nil {
				t.Errorf("%s: %v\n%s", doc, err, m[1])
			}
		}
	}
	if blocks == 0 {
		t.Fatal("no sql block found")
	}
	if tryOut(t.Context(), pool, schema, "SELECT nothing FROM postbus.outbox;") == nil {
		t.Error("a wrong statement passes: this test cannot fail")
	}
}

// tryOut runs statements that speak of the default schema in another one, and
// leaves nothing behind.
func tryOut(ctx context.Context, db interface {
	Begin(context.Context) (pgx.Tx, error)
}, schema, sql string) error {
	sql = regexp.MustCompile(`\bpostbus\b`).ReplaceAllString(sql, schema)
	tx, err := db.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	made := map[string]bool{}
	for _, m := range granted.FindAllStringSubmatch(sql, -1) {
		if role := m[1]; !made[role] { // roles belong to the whole server: names of our own
			made[role] = true
			ours := fmt.Sprintf("%s_%s", schema, role)
			if _, err := tx.Exec(ctx, "CREATE ROLE "+ours); err != nil {
				return err
			}
			sql = strings.ReplaceAll(sql, " TO "+role+";", " TO "+ours+";")
		}
	}
	_, err = tx.Conn().PgConn().Exec(ctx, sql).ReadAll() // several statements at once
	return err
}
