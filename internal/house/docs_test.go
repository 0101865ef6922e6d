package house

import (
	"bytes"
	"errors"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every ```go block in README.md, CONTRIBUTING.md and under docs/ is compiled and vetted, as a
// stranger's program would be: in a module of its own that requires this one.
//
// A block with a package clause is a file. Any other is a fragment, and the
// comment in the line above the block says what completes it:
//
//	<!-- go: in wiring -->          the marker "//fragment" in testdata/wiring.go.txt
//	<!-- go: refused: some text --> it must not compile, and the compiler says the text
//	<!-- go: in wiring, refused: some text -->
//
// and a file that others import by its place in the reader's module says so:
//
//	<!-- go: file shop/order/order.go -->    package example.com/shop/order
//
// Blocks are formatted as gofmt does, and none of them needs a server here.
func TestGoBlocksCompile(t *testing.T) {
	var all []block
	for _, doc := range documents(t) {
		found, err := blocksOf(doc, readDoc(t, doc))
		if err != nil {
			t.Error(err)
		}
		all = append(all, found...)
	}
	if len(all) == 0 {
		t.Fatal("no go block found")
	}
	for _, fault := range compile(t, all) {
		t.Error(fault)
	}
}

// A test that cannot fail is none.
func TestGoBlocksFindsFaults(t *testing.T) {
	text := "# Title\n\n" +
		"```go\npackage main\n\nfunc main() { println(\"sound\") }\n```\n\n" + // line 3
		"```go\npackage main\n\nfunc main() { nowhere() }\n```\n\n" + // line 9
		"<!-- go: refused: undefined: nowhere -->\n```go\npackage main\n\nfunc main() { nowhere() }\n```\n\n" + // line 16
		"<!-- go: refused: undefined: nowhere -->\n```go\npackage main\n\nfunc main() {}\n```\n\n" + // line 23
		"<!-- go: refused: another reason -->\n```go\npackage main\n\nfunc main() { nowhere() }\n```\n\n" + // line 30
		"```go\npackage main\nfunc main()   {}\n```\n" // line 36
	blocks, err := blocksOf("docs/synthetic.md", text)
	if err != nil {
		t.Fatal(err)
	}
	faults := strings.Join(compile(t, blocks), "\n")
	for _, want := range []string{
		"docs/synthetic.md:12", "undefined: nowhere", // where a reader finds it
		"docs/synthetic.md:23 compiles",
		"docs/synthetic.md:30 does not compile, but not for the reason",
		"docs/synthetic.md:36 is not formatted",
	} {
		if !strings.Contains(faults, want) {
			t.Errorf("the faults do not say %q:\n%s", want, faults)
		}
	}
	if n := strings.Count(faults, "synthetic.md:"); n != 4 {
		t.Errorf("%d faults instead of 4:\n%s", n, faults)
	}
	for _, bad := range []string{
		"```go\nx := 1\n```\n",
		"<!-- go: in nowhere -->\n```go\nx := 1\n```\n",
		"<!-- go: whatever -->\n```go\nx := 1\n```\n",
		"```go\npackage p\n",
	} {
		if _, err := blocksOf("docs/synthetic.md", bad); err == nil {
			t.Errorf("accepted: %q", bad)
		}
	}
}

// Links to files of this repository, and to headings in them, lead somewhere.
func TestLinksResolve(t *testing.T) {
	for _, doc := range documents(t) {
		for _, fault := range brokenLinks(doc, readDoc(t, doc), func(p string) (string, bool) {
			b, err := os.ReadFile(filepath.Join(root, p))
			if err != nil {
				_, err = os.Stat(filepath.Join(root, p)) // a folder
			}
			return string(b), err == nil
		}) {
			t.Error(fault)
		}
	}
}

func TestLinksResolveFindsFaults(t *testing.T) {
	files := map[string]string{"docs/a.md": "# Top\n\n## In the end: `ok`\n", "docs/b.md": ""}
	read := func(p string) (string, bool) { s, ok := files[p]; return s, ok }
	text := "[1](b.md) [2](a.md#in-the-end-ok) [3](https://example.org/x) [4](#here)\n# Here\n" +
		"[5](c.md) [6](a.md#nowhere) [7](#nowhere)\n```\n[8](in-code.md)\n```\n"
	faults := brokenLinks("docs/synthetic.md", text, read)
	if len(faults) != 3 || !strings.Contains(faults[0], "c.md") || !strings.Contains(faults[1], "a.md#nowhere") || !strings.Contains(faults[2], "#nowhere") {
		t.Errorf("faults: %q", faults)
	}
}

// documents lists what is checked, relative to the module.
func documents(t *testing.T) []string {
	t.Helper()
	docs := []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			rel, err := filepath.Rel(root, f)
			if err != nil {
				t.Fatal(err)
			}
			docs = append(docs, filepath.ToSlash(rel))
		}
	}
	return docs
}

func readDoc(t *testing.T, doc string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, doc))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// block is one piece of Go in a document.
type block struct {
	doc     string
	line    int    // of its fence
	code    string // as it stands there
	file    string // the whole file to compile
	refused string // what the compiler must say; "" if it must compile
	place   string // the file's path in the reader's module; "" for any
}

func (b block) at() string { return fmt.Sprintf("%s:%d", b.doc, b.line) }

var packageClause = regexp.MustCompile(`(?m)^package \w+$`)

// blocksOf finds and completes the blocks of one document.
func blocksOf(doc, text string) (blocks []block, err error) {
	lines := strings.Split(text, "\n")
	var faults []error
	for i := 0; i < len(lines); i++ {
		if lines[i] != "```go" {
			continue
		}
		b := block{doc: doc, line: i + 1}
		above := ""
		if i > 0 {
			above = lines[i-1]
		}
		end := slices.Index(lines[i:], "```")
		if end < 0 {
			return nil, fmt.Errorf("%s: the block has no end", b.at())
		}
		b.code = strings.Join(lines[i+1:i+end], "\n") + "\n"
		i += end
		if err := b.complete(above); err != nil {
			faults = append(faults, err)
			continue
		}
		blocks = append(blocks, b)
	}
	return blocks, errors.Join(faults...)
}

var directive = regexp.MustCompile(`^<!-- go: (?:in ([a-z-]+))?(?:file (\S+\.go))?(?:, )?(?:refused: (.+))? -->$`)

// complete makes a whole file of the block, whose lines are those of the document.
func (b *block) complete(above string) error {
	prelude := ""
	if strings.HasPrefix(above, "<!-- go:") {
		m := directive.FindStringSubmatch(above)
		if m == nil || m[1] == "" && m[2] == "" && m[3] == "" {
			return fmt.Errorf("%s: %q is none of the comments that TestGoBlocksCompile knows", b.at(), above)
		}
		prelude, b.place, b.refused = m[1], m[2], m[3]
	}
	here := fmt.Sprintf("//line %s:%d\n", b.doc, b.line+1)
	switch {
	case packageClause.MatchString(b.code):
		b.file = here + b.code
		return nil
	case prelude == "":
		return fmt.Errorf("%s: a fragment: put <!-- go: in NAME --> in the line above it, for what completes it (internal/house/testdata/NAME.go.txt), or make it a whole file", b.at())
	}
	text, err := os.ReadFile(filepath.Join("testdata", prelude+".go.txt"))
	if err != nil {
		return fmt.Errorf("%s: %w", b.at(), err)
	}
	before, after, ok := strings.Cut(string(text), "//fragment\n")
	if !ok {
		return fmt.Errorf("%s: testdata/%s.go.txt has no line //fragment", b.at(), prelude)
	}
	b.file = fmt.Sprintf("%s%s%s//line %s.go.txt:%d\n%s", before, here, b.code, prelude, strings.Count(before, "\n")+2, after)
	return nil
}

// compile vets all blocks in two goes, one for those that must compile and one for
// the others, and says what is wrong.
func compile(t *testing.T, all []block) (faults []string) {
	t.Helper()
	dir := t.TempDir()
	writeModule(t, dir)
	var sound []string
	refused := map[string]block{}
	for i, b := range all {
		formatted, err := format.Source([]byte(b.code))
		if err == nil && string(formatted) != b.code {
			faults = append(faults, fmt.Sprintf("%s is not formatted; gofmt makes it:\n%s", b.at(), formatted))
		}
		name := fmt.Sprintf("sound%03d/block.go", i)
		switch {
		case b.refused != "":
			name = fmt.Sprintf("refused/b%03d/block.go", i)
			refused[readersModule+"/"+path.Dir(name)] = b
		case b.place != "":
			name = b.place
			sound = append(sound, "./"+path.Dir(name))
		default:
			sound = append(sound, "./"+path.Dir(name))
		}
		write(t, filepath.Join(dir, name), b.file)
	}
	if len(sound) > 0 {
		if out, ok := goIn(dir, append([]string{"vet"}, sound...)...); !ok {
			faults = append(faults, "go vet of the blocks:\n"+out)
		}
	}
	if len(refused) > 0 {
		out, _ := goIn(dir, "build", "-gcflags=-e", "./refused/...")
		said := map[string]string{}
		for _, part := range strings.Split("\n"+out, "\n# ")[1:] {
			pkg, text, _ := strings.Cut(part, "\n")
			said[pkg] = text
		}
		for pkg, b := range refused {
			switch text, ok := said[pkg]; {
			case !ok:
				faults = append(faults, fmt.Sprintf("%s compiles, and says that it must not (%s)", b.at(), b.refused))
			case !strings.Contains(text, b.refused):
				faults = append(faults, fmt.Sprintf("%s does not compile, but not for the reason it gives (%s)", b.at(), b.refused))
			}
		}
	}
	return faults
}

const readersModule = "example.com"

// writeModule makes the module of a stranger who requires this one: same versions,
// so that nothing is downloaded that this module does not need itself.
func writeModule(t *testing.T, dir string) {
	t.Helper()
	ours, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	mod := strings.Replace(string(ours), "module "+module+"\n", "module "+readersModule+"\n", 1)
	mod += fmt.Sprintf("\nrequire %s v0.0.0\n\nreplace %s => %q\n", module, module, here)
	write(t, filepath.Join(dir, "go.mod"), mod)
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "go.sum"), string(sum))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func goIn(dir string, args ...string) (output string, ok bool) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil && out.Len() == 0 {
		fmt.Fprintln(&out, err)
	}
	return strings.ReplaceAll(out.String(), dir+string(filepath.Separator), ""), err == nil
}

var (
	fenced = regexp.MustCompile("(?ms)^```.*?^```$")
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	scheme = regexp.MustCompile(`^[a-z]+:`)
	hashes = regexp.MustCompile(`(?m)^#+ (.+)$`)
	noSlug = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// brokenLinks says which of a document's links lead nowhere. read gives a file's text.
func brokenLinks(doc, text string, read func(string) (string, bool)) (faults []string) {
	prose := fenced.ReplaceAllString(text, "")
	for _, m := range link.FindAllStringSubmatch(prose, -1) {
		if scheme.MatchString(m[1]) {
			continue
		}
		file, anchor, _ := strings.Cut(m[1], "#")
		target, found := prose, true
		if file != "" {
			target, found = read(filepath.ToSlash(filepath.Join(filepath.Dir(doc), file)))
			target = fenced.ReplaceAllString(target, "")
		}
		if !found || anchor != "" && !slices.Contains(anchors(target), anchor) {
			faults = append(faults, fmt.Sprintf("%s: the link to %s leads nowhere", doc, m[1]))
		}
	}
	return faults
}

// anchors are a document's headings as links name them.
func anchors(text string) (all []string) {
	for _, h := range hashes.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.ReplaceAll(strings.ToLower(noSlug.ReplaceAllString(h[1], "")), " ", "-"))
	}
	return all
}
