package migrations

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// Layout is how the files of another migration tool are named and divided.
type Layout uint8

const (
	// Plain has NAME.sql, and the way down as down/NAME.sql: for psql, with
	// --single-transaction and -v ON_ERROR_STOP=1, and for atlas, which takes the
	// folder as it is once `atlas migrate hash` has been run in it.
	Plain Layout = iota
	// GolangMigrate has NAME.up.sql and NAME.down.sql.
	GolangMigrate
	// Goose has both ways in one NAME.sql, under "-- +goose Up" and "-- +goose Down".
	Goose
)

// Files are the migrations of schema (empty: DefaultSchema) as files for another tool,
// up to Latest. What they create is what Up creates, the list of what was applied
// included, so that Check, and the start of every relay, find the schema migrated;
// what Down refuses, the files for the way down refuse, too. Write them out with
// os.CopyFS, or give them to the tool as they are. They are numbered from 1: keep them
// in a folder of their own, with a table of versions of their own in the tool, or
// rename them into your numbering.
func Files(schema string, layout Layout) (fs.FS, error) {
	if schema == "" {
		schema = DefaultSchema
	}
	if err := CheckSchema(schema); err != nil {
		return nil, err
	}
	if layout > Goose {
		return nil, fmt.Errorf("files of schema %q: layout %d does not exist: use Plain, GolangMigrate or Goose", schema, layout)
	}
	all, err := load()
	if err != nil {
		return nil, err
	}
	// An archive in memory, since outside of its testing packages the standard library
	// has no other file system that is made of bytes.
	var archive bytes.Buffer
	w := zip.NewWriter(&archive)
	for _, m := range all {
		up, down := m.up+m.applied(), m.down+m.undone()
		if m.version == 1 {
			up, down = schemaUp+"\n"+up, down+"\n"+schemaDown
		}
		for name, text := range layout.files(m.name, fill(up, schema), fill(down, schema)) {
			f, err := w.Create(name)
			if err != nil {
				return nil, err
			}
			if _, err := f.Write([]byte(text)); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return zip.NewReader(bytes.NewReader(archive.Bytes()), int64(archive.Len()))
}

// files are one migration's, by name.
func (l Layout) files(name, up, down string) map[string]string {
	switch l {
	case GolangMigrate:
		return map[string]string{name + ".up.sql": up, name + ".down.sql": down}
	case Goose:
		return map[string]string{name + ".sql": "-- +goose Up\n" + whole.Replace(up) + "\n-- +goose Down\n" + whole.Replace(down)}
	}
	return map[string]string{name + ".sql": up, "down/" + name + ".sql": down}
}

// whole tells goose, which takes a line that ends in a semicolon for the end of a
// statement, where one with semicolons inside begins and ends.
var whole = strings.NewReplacer(
	"DO $postbus$\n", "-- +goose StatementBegin\nDO $postbus$\n",
	"$postbus$;\n", "$postbus$;\n-- +goose StatementEnd\n",
)
