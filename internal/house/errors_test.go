package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var errorRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (`[a-z]+\\.Err[^|]*) \\|")

// A person finds the words of an error in docs/errors.md: every sentinel, with its
// text, and no other; and the types of errors are named.
func TestErrorsAreDocumented(t *testing.T) {
	page := readDoc(t, "docs/errors.md")
	rows := map[string]string{} // text to names
	for _, m := range errorRow.FindAllStringSubmatch(page, -1) {
		rows[m[1]] += m[2]
	}
	known := map[string]bool{}
	for _, dir := range promising {
		sentinels, types := errorsIn(t, dir)
		pkg := filepath.Base(dir)
		for name, text := range sentinels {
			known[text] = true
			if !strings.Contains(rows[text], "`"+pkg+"."+name+"`") {
				t.Errorf("docs/errors.md has no row for %s.%s with its text %q: say what it means and what to do", pkg, name, text)
			}
		}
		for _, name := range types {
			if !strings.Contains(page, name+"`") {
				t.Errorf("docs/errors.md does not name the type %s.%s", pkg, name)
			}
		}
	}
	if len(known) == 0 {
		t.Fatal("no error found in the code")
	}
	for text := range rows {
		if !known[text] {
			t.Errorf("docs/errors.md explains the error %q, which is not in the code: correct it, or take it out", text)
		}
	}
}

// errorsIn gives a package's exported sentinels with their texts, and its error types.
func errorsIn(t *testing.T, dir string) (sentinels map[string]string, types []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	sentinels = map[string]string{}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if i >= len(n.Values) || !strings.HasPrefix(name.Name, "Err") {
						continue
					}
					if call, ok := n.Values[i].(*ast.CallExpr); ok && len(call.Args) == 1 {
						if text, ok := literal(call.Args[0]); ok {
							sentinels[name.Name] = text
						}
					}
					// One that several packages return has its text in internal/.
					if from, ok := n.Values[i].(*ast.SelectorExpr); ok {
						if pkg, ok := from.X.(*ast.Ident); ok {
							theirs, _ := errorsIn(t, filepath.Join("internal", pkg.Name))
							if text, ok := theirs[from.Sel.Name]; ok {
								sentinels[name.Name] = text
							}
						}
					}
				}
			case *ast.TypeSpec:
				if ast.IsExported(n.Name.Name) && strings.HasSuffix(n.Name.Name, "Error") {
					types = append(types, n.Name.Name)
				}
			}
			return true
		})
	}
	slices.Sort(types)
	return sentinels, types
}
