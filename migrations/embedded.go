package migrations

import (
	"embed"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed sql/*.sql
var files embed.FS

// What comes before the first migration on the way up, and after it on the way down.
var (
	//go:embed sql/schema.sql
	schemaUp string
	//go:embed sql/schema.down.sql
	schemaDown string
)

// migration is one numbered pair of files.
type migration struct {
	version  int
	name     string
	up, down string
}

// applied notes the migration, for Version and Check.
func (m migration) applied() string {
	return fmt.Sprintf("\nINSERT INTO {schema}.schema_migration (version, name) VALUES (%d, '%s');\n", m.version, m.name)
}

// undone takes the note back.
func (m migration) undone() string {
	return fmt.Sprintf("\nDELETE FROM {schema}.schema_migration WHERE version = %d;\n", m.version)
}

// fill puts the schema's name in, where the files have a place for it. It is a
// checked one, which needs no escaping.
func fill(sql, schema string) string {
	return strings.NewReplacer("{schema}", pgx.Identifier{schema}.Sanitize(), "{name}", schema).Replace(sql)
}

// load reads the embedded files, which are numbered without gaps from 1. Each has a
// file for the way down beside it.
func load() ([]migration, error) {
	const down = ".down.sql"
	paths, err := fs.Glob(files, "sql/[0-9]*.sql")
	if err != nil {
		return nil, err
	}
	var all []migration
	for _, path := range paths { // Glob sorts
		if strings.HasSuffix(path, down) {
			continue
		}
		name := strings.TrimSuffix(strings.TrimPrefix(path, "sql/"), ".sql")
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != len(all)+1 {
			return nil, fmt.Errorf("embedded migration %s: expected number %d", name, len(all)+1)
		}
		up, err := files.ReadFile(path)
		if err != nil {
			return nil, err
		}
		back, err := files.ReadFile("sql/" + name + down)
		if err != nil {
			return nil, err
		}
		all = append(all, migration{version, name, string(up), string(back)})
	}
	if len(all) != Latest || len(paths) != 2*Latest {
		return nil, fmt.Errorf("embedded migrations: %d files for %d versions, Latest is %d", len(paths), len(all), Latest)
	}
	return all, nil
}
