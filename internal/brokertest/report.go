package brokertest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// reportVariable names a folder that Run leaves its figures in, for `make test-brokers` to print.
const reportVariable = "POSTBUS_TEST_BROKERS"

// Report is what one broker was found to be able to do.
type Report struct {
	Broker string
	Rows   []Row
	leaks  int
	b      Broker
}

// Row is one capability.
type Row struct {
	Case     string
	Says     string
	Declared string
	Measured bool // held in this run
	Figures  string
	Took     time.Duration
}

func newReport(b Broker) *Report { return &Report{Broker: b.Name, b: b} }

func (r *Report) add(p probe, declared Answer, measured bool, figures string, took time.Duration) {
	r.Rows = append(r.Rows, Row{Case: p.name, Says: p.says, Declared: declared.String(), Measured: measured, Figures: figures, Took: took})
}

// finish holds the declaration against the documentation, and leaves the figures.
func (r *Report) finish(t *testing.T) {
	t.Helper()
	r.Rows = append(r.Rows, Row{Case: "leaks", Says: leaksSay, Declared: r.b.Capabilities.NoLeaks.String(), Measured: r.leaks == 0, Figures: figuresOf("%d cases left one", r.leaks)})
	if dir := os.Getenv(reportVariable); dir != "" {
		if err := r.write(dir); err != nil {
			t.Error(err)
		}
	}
	path, err := tablePath()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if faults := faultsOfTable(string(text), r.b.Name, r.b.Capabilities); len(faults) > 0 {
		t.Errorf("docs/brokers/README.md: %d cells are not what is declared and was measured; `make test-brokers` prints the table; the first: %s", len(faults), faults[0])
	}
}

var notInFileNames = regexp.MustCompile(`[^a-z0-9]+`)

func (r *Report) write(dir string) error {
	content, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, notInFileNames.ReplaceAllString(strings.ToLower(r.Broker), "-")+".json"), content, 0o644)
}

// tablePath is docs/brokers/README.md, above the package under test.
func tablePath() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for start := dir; ; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, "docs", "brokers", "README.md")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no docs/brokers/README.md above %s", start)
		}
	}
}

// faultsOfTable looks for the broker's column, and compares.
func faultsOfTable(text, broker string, c Capabilities) (faults []string) {
	var column int
	found := map[string]string{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			column = 0
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		for i, cell := range cells {
			if i > 0 && cell == broker {
				column = i
			}
		}
		if column > 0 && column < len(cells) {
			found[cells[0]] = cells[column]
		}
	}
	if len(found) == 0 {
		return []string{fmt.Sprintf("no table has a column %q; add it", broker)}
	}
	for _, row := range rows() {
		if is, want := found[row.says], row.declared(&c).String(); is != want {
			faults = append(faults, fmt.Sprintf("column %q, row %q says %q, not %q", broker, row.says, is, want))
		}
	}
	return faults
}

// rows are the rows of the table.
func rows() []probe {
	return append(cases[:len(cases):len(cases)], probe{name: "leaks", says: leaksSay, declared: func(c *Capabilities) *Answer { return &c.NoLeaks }})
}

// Table prints reports side by side in Markdown: what was measured, in the given order.
func Table(reports []Report) string {
	var b strings.Builder
	b.WriteString("| |")
	for _, r := range reports {
		fmt.Fprintf(&b, " %s |", r.Broker)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(reports)) + "\n")
	for _, row := range rows() {
		fmt.Fprintf(&b, "| %s |", row.says)
		for _, r := range reports {
			cell := "not measured"
			for _, is := range r.Rows {
				if is.Says == row.says {
					cell = is.Declared
				}
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Figures prints what was measured, broker by broker.
func Figures(reports []Report) string {
	var b strings.Builder
	for _, r := range reports {
		fmt.Fprintf(&b, "%s\n", r.Broker)
		for _, row := range r.Rows {
			mark := "yes"
			if !row.Measured {
				mark = "no"
			}
			fmt.Fprintf(&b, "  %-21s %-4s %8s  %s\n", row.Case, mark, row.Took.Round(10*time.Millisecond), row.Figures)
		}
	}
	return b.String()
}
