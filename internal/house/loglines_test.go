package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var tableMessage = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:Info|Warn|Error)")

// A person on call looks a log line up in docs/operations.md and finds it: every
// message of the code, and no other.
func TestLogLinesAreDocumented(t *testing.T) {
	var logged, texts []string
	for _, pkg := range promising {
		l, s := messagesIn(t, filepath.Join(root, pkg))
		logged, texts = append(logged, l...), append(texts, s...)
	}
	if len(logged) == 0 {
		t.Fatal("no log line found in the code")
	}
	var documented []string
	for _, m := range tableMessage.FindAllStringSubmatch(readDoc(t, "docs/operations.md"), -1) {
		documented = append(documented, m[1])
	}
	for _, m := range logged {
		if !slices.Contains(documented, m) {
			t.Errorf("docs/operations.md has no row for the log message %q: say what it means and what to do", m)
		}
	}
	for _, m := range documented {
		if !slices.Contains(texts, m) {
			t.Errorf("docs/operations.md explains the log message %q, which nothing logs: correct it, or take it out", m)
		}
	}
}

// messagesIn gives the messages that a package logs above Debug, as far as they
// stand in the call, and all its texts, for those that do not.
func messagesIn(t *testing.T, dir string) (logged, texts []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if text, ok := literal(n); ok {
				texts = append(texts, text)
			}
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			at := map[string]int{"Info": 0, "Warn": 0, "Error": 0, "InfoContext": 1, "WarnContext": 1, "ErrorContext": 1, "LogAttrs": 2}
			i, isLog := at[method.Sel.Name]
			if isLog && i < len(call.Args) {
				if text, ok := literal(call.Args[i]); ok {
					logged = append(logged, text)
				}
			}
			return true
		})
	}
	return logged, texts
}

func literal(n ast.Node) (string, bool) {
	l, ok := n.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}
