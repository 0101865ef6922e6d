package house

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the documents tell a contributor to type exists: make targets, environment
// variables, paths, and the tests that go test is asked to run.
func TestCommandsInTheDocumentsExist(t *testing.T) {
	h := lookRound(t)
	if len(h.targets) == 0 || len(h.variables) == 0 {
		t.Fatalf("%d make targets and %d variables found", len(h.targets), len(h.variables))
	}
	for _, doc := range documents(t) {
		if doc == "CHANGELOG.md" {
			continue // it speaks of what was
		}
		for _, fault := range h.faultsOf(readDoc(t, doc)) {
			t.Errorf("%s: %s", doc, fault)
		}
	}
}

// A test that cannot fail is none.
func TestCommandsInTheDocumentsFindsFaults(t *testing.T) {
	h := lookRound(t)
	text := "Run `make test`, `make nothing`, or\n```sh\nPOSTBUS_REDIS_URL=x make demo\nPOSTBUS_NOTHING=1 make lint FUZZTIME=1s\n```\n" +
		"in `outbox/doc.go`, `outbox/nothing.go`, `broker/NAME`, `text/plain`.\n" +
		"`go test -run TestFloors ./internal/house` `go test -run 'TestFloors/x' ./events` `go test -bench Mislaid ./events` `go test ./nowhere`\n" +
		"`go test -run TestCommandsInTheDocumentsExist ./...`\n"
	faults := h.faultsOf(text)
	for i, want := range []string{"make nothing", "POSTBUS_NOTHING", "outbox/nothing.go", "TestFloors/x", "Mislaid", "./nowhere"} {
		if i >= len(faults) || !strings.Contains(faults[i], want) {
			t.Fatalf("the faults are %q, want the %d. about %s", faults, i+1, want)
		}
	}
	if len(faults) != 6 {
		t.Errorf("%d faults: %q", len(faults), faults)
	}
}

// surroundings is what there is to be named.
type surroundings struct {
	targets   []string
	variables []string
	tests     map[string][]string // tests, benchmarks and fuzz tests by folder
}

var (
	makeTarget   = regexp.MustCompile(`(?m)^([a-z][a-z-]*):`)
	ourVariable  = regexp.MustCompile(`\bPOSTBUS_[A-Z0-9_]+`)
	makeCommand  = regexp.MustCompile("(?m)(?:`|^|=[^ `]* |&& )make ([a-z][a-z-]*)")
	goTest       = regexp.MustCompile("(?m)(?:`|^| )go test ([^`\n#]*)")
	runFlag      = regexp.MustCompile(`-(?:run|bench|fuzz) '?([^' ]+)'?`)
	packageFlag  = regexp.MustCompile(` (\./[\w./]*)`)
	inBackticks  = regexp.MustCompile("`([\\w.-]+(?:/[\\w.-]+)+)`")
	shellFences  = regexp.MustCompile("(?ms)^```(?:sh|text)\n(.*?)^```$")
	otherFences  = regexp.MustCompile("(?ms)^```(?:go|sql).*?^```$")
	testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz|Example)\w*)\(`)
)

func lookRound(t *testing.T) surroundings {
	t.Helper()
	h := surroundings{tests: map[string][]string{}}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if file != root && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		}
		isTest := strings.HasSuffix(file, "_test.go")
		if d.Name() != "Makefile" && filepath.Ext(file) != ".go" {
			return nil
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if d.Name() == "Makefile" {
			for _, m := range makeTarget.FindAllStringSubmatch(string(content), -1) {
				h.targets = append(h.targets, m[1])
			}
		}
		// This file names one that does not exist.
		if !isTest || filepath.Base(file) != "commands_test.go" {
			h.variables = append(h.variables, ourVariable.FindAllString(string(content), -1)...)
		}
		if isTest {
			dir, err := filepath.Rel(root, filepath.Dir(file))
			if err != nil {
				return err
			}
			for _, m := range testFunction.FindAllStringSubmatch(string(content), -1) {
				h.tests[filepath.ToSlash(dir)] = append(h.tests[filepath.ToSlash(dir)], m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h surroundings) faultsOf(text string) (faults []string) {
	text = otherFences.ReplaceAllString(text, "")
	// In prose only what is set as code is a command: "make sure" is none.
	var code strings.Builder
	for _, m := range shellFences.FindAllStringSubmatch(text, -1) {
		code.WriteString(m[1])
	}
	prose := fenced.ReplaceAllString(text, "")
	for _, m := range regexp.MustCompile("`[^`]+`").FindAllString(prose, -1) {
		code.WriteString(m + "\n")
	}
	for _, m := range makeCommand.FindAllStringSubmatch(code.String(), -1) {
		if !slices.Contains(h.targets, m[1]) {
			faults = append(faults, fmt.Sprintf("make %s: the Makefile has no such target", m[1]))
		}
	}
	for _, name := range ourVariable.FindAllString(text, -1) {
		if !slices.Contains(h.variables, name) {
			faults = append(faults, fmt.Sprintf("%s: nothing reads this variable", name))
		}
	}
	for _, m := range inBackticks.FindAllStringSubmatch(prose, -1) {
		if fault := missingPath(m[1]); fault != "" {
			faults = append(faults, fault)
		}
	}
	for _, m := range goTest.FindAllStringSubmatch(code.String(), -1) {
		faults = append(faults, h.faultsOfGoTest(m[1])...)
	}
	return faults
}

// missingPath speaks of paths that begin in a folder of the repository's root.
// Upper case stands for a name to be filled in; .dev is made by the servers.
func missingPath(p string) string {
	first, _, _ := strings.Cut(p, "/")
	info, err := os.Stat(filepath.Join(root, first))
	if err != nil || !info.IsDir() || first == ".dev" || strings.ToLower(p) != p {
		return ""
	}
	if _, err := os.Stat(filepath.Join(root, p)); err != nil {
		return fmt.Sprintf("%s: no such file or folder", p)
	}
	return ""
}

// faultsOfGoTest looks for the packages of a go test command, and in them for a
// test of the name that it is asked to run.
func (h surroundings) faultsOfGoTest(args string) (faults []string) {
	var names []string
	for _, m := range packageFlag.FindAllStringSubmatch(" "+args, -1) {
		dir := strings.TrimPrefix(m[1], "./")
		if dir == "..." {
			for _, found := range h.tests {
				names = append(names, found...)
			}
			continue
		}
		found, ok := h.tests[strings.TrimSuffix(dir, "/...")]
		if !ok {
			faults = append(faults, fmt.Sprintf("go test %s: no tests there", m[1]))
		}
		names = append(names, found...)
	}
	for _, m := range runFlag.FindAllStringSubmatch(args, -1) {
		top, _, _ := strings.Cut(m[1], "/")
		if m[1] == "^$" || len(names) == 0 {
			continue
		}
		pattern, err := regexp.Compile(top)
		if err != nil || !slices.ContainsFunc(names, pattern.MatchString) {
			faults = append(faults, fmt.Sprintf("go test %s: no test of the packages is called %s", strings.TrimSpace(args), m[1]))
		}
	}
	return faults
}
