package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// promising are the packages whose documentation lists guarantees.
var promising = []string{"events", "migrations", "outbox", "bus", "handlers", "postbustest", "broker/kafka", "broker/redisstream", "broker/rabbitmq", "broker/sqs"}

var testName = regexp.MustCompile(`\b(?:Test|Fuzz|Example)[A-Z]\w*`)

// Each guarantee in a package's documentation names tests of that package, and they
// exist: a promise whose test was renamed away is a promise that nobody keeps.
func TestGuaranteesNameTheirTests(t *testing.T) {
	for _, pkg := range promising {
		text, err := packageDoc(filepath.Join(root, pkg))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, fault := range faultsOfGuarantees(pkg, text, testsIn(t, filepath.Join(root, pkg))) {
			t.Error(fault)
		}
	}
}

// The documents name tests, too: of any package.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	var all []string
	err := filepath.WalkDir(root, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if dir != root && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		all = append(all, testsIn(t, dir)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range documents(t) {
		for _, name := range testName.FindAllString(readDoc(t, doc), -1) {
			if !slices.Contains(all, name) {
				t.Errorf("%s names %s, a test that does not exist: correct the name, or write the test", doc, name)
			}
		}
	}
}

func TestGuaranteesFindsFaults(t *testing.T) {
	const sound = "Package p does.\n\n# Guarantees\n\n 1. One thing\n    (TestOne, FuzzTwo).\n 2. Another (TestOne).\n\n# Not promised\n\nThe rest.\n"
	tests := []string{"TestOne", "FuzzTwo"}
	if faults := faultsOfGuarantees("p", sound, tests); len(faults) > 0 {
		t.Fatalf("a sound text is refused: %q", faults)
	}
	for name, c := range map[string]struct{ text, want string }{
		"unknown test":  {strings.Replace(sound, "FuzzTwo", "TestThree", 1), "p, guarantee 1: TestThree"},
		"no test":       {strings.Replace(sound, " (TestOne)", "", 1), "p, guarantee 2"},
		"none":          {"Package p does.\n", "p: no section # Guarantees"},
		"no numbers":    {"# Guarantees\n\nAll is well.\n\n# Not promised\n\nMuch.\n", "p: no numbered guarantee"},
		"no other side": {strings.Split(sound, "# Not")[0], "p: no section # Not promised"},
	} {
		faults := faultsOfGuarantees("p", c.text, tests)
		if len(faults) != 1 || !strings.Contains(faults[0], c.want) {
			t.Errorf("%s: %q", name, faults)
		}
	}
}

var numbered = regexp.MustCompile(`(?m)^ *(\d+)\. `)

func faultsOfGuarantees(pkg, text string, tests []string) (faults []string) {
	_, after, ok := strings.Cut("\n"+text, "\n# Guarantees\n")
	if !ok {
		return []string{fmt.Sprintf("%s: no section # Guarantees in the package's documentation: list them, numbered, each with the name of the test that holds it", pkg)}
	}
	section, rest, _ := strings.Cut(after, "\n# ")
	if !strings.HasPrefix(rest, "Not promised\n") {
		faults = append(faults, fmt.Sprintf("%s: no section # Not promised behind # Guarantees: a promise without its limits promises too much", pkg))
	}
	starts := numbered.FindAllStringSubmatchIndex(section, -1)
	if len(starts) == 0 {
		return append(faults, fmt.Sprintf("%s: no numbered guarantee", pkg))
	}
	for i, at := range starts {
		end := len(section)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		number, named := section[at[2]:at[3]], testName.FindAllString(section[at[0]:end], -1)
		if len(named) == 0 {
			faults = append(faults, fmt.Sprintf("%s, guarantee %s: it names no test that holds it", pkg, number))
		}
		for _, name := range named {
			if !slices.Contains(tests, name) {
				faults = append(faults, fmt.Sprintf("%s, guarantee %s: %s does not exist in this package: correct the name, or write the test", pkg, number, name))
			}
		}
	}
	return faults
}

// packageDoc is the text of doc.go's package comment.
func packageDoc(dir string) (string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, "doc.go"), nil, parser.ParseComments|parser.PackageClauseOnly)
	if err != nil {
		return "", err
	}
	return file.Doc.Text(), nil
}

// testsIn names the tests, fuzz tests and examples of one directory.
func testsIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
		if os.IsNotExist(err) {
			continue // somebody's temporary file
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && testName.MatchString(fn.Name.Name) {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}

var fileName = regexp.MustCompile(`\b[a-z0-9]+\.go\b`)

// A reader of outbox is told the order of its files: of all of them, and of no others.
func TestReadingOrderIsComplete(t *testing.T) {
	text, err := packageDoc(filepath.Join(root, "outbox"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(text, "# Follow a row")
	section, _, _ := strings.Cut(after, "\n# ")
	named := fileName.FindAllString(section, -1)
	files, err := filepath.Glob(filepath.Join(root, "outbox", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var there []string
	for _, f := range files {
		if name := filepath.Base(f); name != "doc.go" && !strings.HasSuffix(name, "_test.go") {
			there = append(there, name)
		}
	}
	for _, f := range there {
		if !slices.Contains(named, f) {
			t.Errorf("outbox/doc.go does not say where %s is read: give it its place in # Follow a row", f)
		}
	}
	for _, f := range named {
		if !slices.Contains(there, f) {
			t.Errorf("outbox/doc.go, # Follow a row: %s does not exist", f)
		}
	}
}
