package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// RESULTS.md is a header and a section a comparison. A run replaces the sections of
// what it has measured and leaves the others, so that ONLY= and the other groups add to it.
const (
	resultsHead = `# What was measured

Written by ` + "`make bench`, `make bench-brokers` and `make soak`" + `; each section says when and how. README.md beside this file
says how to read it. Ratios are ours to theirs, medians over the rounds, in brackets the smallest and
the largest. "aa" is our own program measured against itself in the same rounds: what differs from 1
there is noise.
`
	sectionBegin = "## "
)

// WriteResults brings the section of one comparison up to date.
func WriteResults(path string, c Comparison, r *Report, machine string, quick bool) error {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("bring %s up to date: %w", path, err)
	}
	merged := merge(string(content), c.Name, section(c, r, machine, quick, time.Now()))
	if err := os.WriteFile(path, []byte(merged), 0o644); err != nil {
		return fmt.Errorf("bring %s up to date: %w", path, err)
	}
	return nil
}

// section is what RESULTS.md says of one comparison.
func section(c Comparison, r *Report, machine string, quick bool, at time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s\n\n%s.\n\n", sectionBegin, c.Name, capitalized(c.Shows))
	if len(r.Bars) > 0 {
		b.WriteString("| figure | measured | asked | |\n|---|---|---|---|\n")
		for _, bar := range r.Bars {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", bar.Figure, bar.Measured(), bar.Demand(), bar.Verdict())
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "```\n%s\n```\n\n", r.Line)
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	how := "full run"
	if quick {
		how = "QUICK run, which does less work and says less"
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		one, _, _ := strings.Cut(string(load), " ")
		how += ", load average at its end " + one
	}
	fmt.Fprintf(&b, "- %s, %s, %s\n", at.UTC().Format("2006-01-02 15:04 MST"), how, machine)
	return b.String()
}

// merge puts a section in the place of the one of that name, or at the end.
func merge(content, name, section string) string {
	head, rest, _ := strings.Cut("\n"+content, "\n"+sectionBegin)
	_ = head // always written anew
	out := resultsHead
	found := false
	if rest != "" {
		for part := range strings.SplitSeq(rest, "\n"+sectionBegin) {
			title, _, _ := strings.Cut(part, "\n")
			if title == name {
				found = true
				out += "\n" + section
				continue
			}
			out += "\n" + sectionBegin + strings.TrimRight(part, "\n") + "\n"
		}
	}
	if !found {
		out += "\n" + section
	}
	return out
}

func capitalized(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
