package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The domain packages could be lifted out of this repository: they import
// nothing of Postbus, nor of Watermill or a broker, nor of each other.
func TestDomainImportsNothingOfOurs(t *testing.T) {
	t.Parallel()
	files := 0
	err := filepath.WalkDir("internal", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		files++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			host, _, _ := strings.Cut(imported, "/")
			if strings.Contains(host, ".") && imported != "github.com/jackc/pgx/v5" {
				t.Errorf("%s imports %s: a domain knows the standard library and pgx; the rest belongs into wiring.go", path, imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("no files were found under internal")
	}
}
