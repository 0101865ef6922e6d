package migrations_test

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

var layouts = map[string]migrations.Layout{"plain": migrations.Plain, "golang-migrate": migrations.GolangMigrate, "goose": migrations.Goose}

// filesOf gives what a tool of a layout would run, on the way up and on the way down.
// In one piece through the simple protocol, as psql --single-transaction and
// golang-migrate do; for goose statement by statement through the extended one.
func filesOf(t *testing.T, schema string, layout migrations.Layout) (up, down []string) {
	t.Helper()
	fsys, err := migrations.Files(schema, layout)
	if err != nil {
		t.Fatal(err)
	}
	err = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(fsys, path)
		if err != nil {
			return err
		}
		switch sql := string(text); layout {
		case migrations.Goose:
			above, below, ok := strings.Cut(sql, "-- +goose Down\n")
			if !ok || !strings.HasPrefix(above, "-- +goose Up\n") {
				t.Errorf("%s has no two ways", path)
			}
			up, down = append(up, gooseStatements(above)...), append(gooseStatements(below), down...)
		case migrations.GolangMigrate:
			if strings.HasSuffix(path, ".up.sql") {
				up = append(up, sql)
			} else if strings.HasSuffix(path, ".down.sql") {
				down = append([]string{sql}, down...)
			} else {
				t.Errorf("%s is neither up nor down", path)
			}
		default:
			if strings.HasPrefix(path, "down/") {
				down = append([]string{sql}, down...)
			} else {
				up = append(up, sql)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(up) < migrations.Latest || len(down) < migrations.Latest {
		t.Fatalf("%d statements or files up, %d down", len(up), len(down))
	}
	return up, down
}

// gooseStatements divides as goose documents it: a statement ends with a line that
// ends in a semicolon, comments aside, or, between the two marks, not before the second.
func gooseStatements(sql string) (all []string) {
	var b strings.Builder
	within := false
	for line := range strings.Lines(sql) {
		switch strings.TrimSpace(line) {
		case "-- +goose StatementBegin":
			within = true
			continue
		case "-- +goose StatementEnd":
			within = false
			all = append(all, b.String())
			b.Reset()
			continue
		}
		code, _, _ := strings.Cut(line, "--")
		if !within && strings.TrimSpace(code) == "" {
			continue
		}
		b.WriteString(line)
		if !within && strings.HasSuffix(strings.TrimSpace(code), ";") {
			all = append(all, b.String())
			b.Reset()
		}
	}
	if strings.TrimSpace(b.String()) != "" {
		all = append(all, b.String())
	}
	return all
}

func runAll(t *testing.T, pool *pgxpool.Pool, layout migrations.Layout, all []string) error {
	t.Helper()
	return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		for _, sql := range all {
			var err error
			if layout == migrations.Goose {
				_, err = tx.Conn().PgConn().ExecParams(t.Context(), sql, nil, nil, nil, nil).Close()
			} else {
				_, err = tx.Conn().PgConn().Exec(t.Context(), sql).ReadAll()
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Whoever creates the tables, the result is the same, and Postbus takes it for its own.
func TestFilesMakeWhatUpMakes(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18} {
		for name, layout := range layouts {
			t.Run(string(which)+"/"+name, func(t *testing.T) {
				t.Parallel()
				pool := testkit.Postgres(t, which)
				for _, there := range []bool{false, true} {
					create := testkit.Schema
					if there {
						create = testkit.CreateSchema
					}
					ours, theirs := create(t, which), create(t, which)
					up(t, pool, ours)
					upward, downward := filesOf(t, theirs, layout)
					if err := runAll(t, pool, layout, upward); err != nil {
						t.Fatal(err)
					}
					same(t, "the schema", catalog(t, pool, theirs), catalog(t, pool, ours))
					same(t, "what was applied", applied(t, pool, theirs), applied(t, pool, ours))
					if err := migrations.Check(t.Context(), pool, theirs); err != nil {
						t.Error(err)
					}
					if err := migrations.Up(t.Context(), pool, theirs); err != nil {
						t.Error(err)
					}

					// They refuse what Down refuses, and else remove what Down removes.
					exec(t, pool, `INSERT INTO `+theirs+`.outbox (slot, schema_version, event_id, topic, event_type, partition_key, content_type, payload)
						VALUES (0, 1, gen_random_uuid(), 't', 't', 'k', 'application/json', '{}')`)
					if err := runAll(t, pool, layout, downward); err == nil || !strings.Contains(err.Error(), "PB001") || !strings.Contains(err.Error(), "postbus.discard_events") {
						t.Errorf("down with an event in the log: %v, want a refusal", err)
					}
					if err := migrations.Check(t.Context(), pool, theirs); err != nil {
						t.Error(err)
					}
					if err := runAll(t, pool, layout, append([]string{`SET LOCAL postbus.discard_events = 'on'`}, downward...)); err != nil {
						t.Error(err)
					}
					if err := migrations.Down(t.Context(), pool, ours, 0); err != nil {
						t.Error(err)
					}
					same(t, "what is left", catalog(t, pool, theirs), catalog(t, pool, ours))
					for _, schema := range []string{ours, theirs} {
						var stays bool
						if err := pool.QueryRow(t.Context(), `SELECT to_regnamespace($1) IS NOT NULL`, schema).Scan(&stays); err != nil || stays != there {
							t.Errorf("schema %s stays: %v, was there before: %v (%v)", schema, stays, there, err)
						}
					}
				}
			})
		}
	}
}

// What Up makes can be taken down by the files, and the other way round.
func TestFilesAndUpMeet(t *testing.T) {
	t.Parallel()
	pool := testkit.Postgres(t, testkit.PG15)
	for name, layout := range layouts {
		schema := testkit.Schema(t)
		upward, downward := filesOf(t, schema, layout)
		for range 2 {
			up(t, pool, schema)
			if err := runAll(t, pool, layout, downward); err != nil {
				t.Errorf("%s down after Up: %v", name, err)
			}
			if err := runAll(t, pool, layout, upward); err != nil {
				t.Errorf("%s up: %v", name, err)
			}
			if err := migrations.Down(t.Context(), pool, schema, 0); err != nil {
				t.Errorf("Down after %s: %v", name, err)
			}
		}
	}
}

func TestFilesAreNamedAsToolsExpect(t *testing.T) {
	t.Parallel()
	for layout, want := range map[migrations.Layout][]string{
		migrations.Plain:         {"0001_outbox.sql", "down/0001_outbox.sql"},
		migrations.GolangMigrate: {"0001_outbox.down.sql", "0001_outbox.up.sql"},
		migrations.Goose:         {"0001_outbox.sql"},
	} {
		fsys, err := migrations.Files("", layout)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		err = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			names = append(names, path)
			text, err := fs.ReadFile(fsys, path)
			if left := regexp.MustCompile(`\{(schema|name)\}`).FindString(string(text)); left != "" || !strings.Contains(string(text), `"postbus"`) {
				t.Errorf("%s: the schema's name is not filled in", path)
			}
			return err
		})
		if slices.Sort(names); err != nil || fmt.Sprint(names) != fmt.Sprint(want) {
			t.Errorf("layout %d: %v, want %v (%v)", layout, names, want, err)
		}
	}
	if _, err := migrations.Files(`x"`, migrations.Plain); !errors.Is(err, migrations.ErrInvalidSchema) {
		t.Errorf("a name that needs quotes: %v", err)
	}
	if _, err := migrations.Files("", 9); err == nil || !strings.Contains(err.Error(), "layout 9") {
		t.Errorf("an unknown layout: %v", err)
	}
}
