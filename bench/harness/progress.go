package harness

import (
	"fmt"
	"io"
	"time"
)

// Progress tells what is being measured, on one line of a terminal that is written
// over, or, where there is none, with one line a comparison.
type Progress struct {
	out      io.Writer
	terminal bool
	began    time.Time
	of       int
	at       int
	name     string
}

// NewProgress shows the progress of that many comparisons on out.
func NewProgress(out io.Writer, terminal bool, comparisons int) *Progress {
	return &Progress{out: out, terminal: terminal, began: time.Now(), of: comparisons}
}

// Begin names the comparison that follows.
func (p *Progress) Begin(name string) {
	p.at++
	p.name = name
	if !p.terminal {
		fmt.Fprintf(p.out, "%s %d/%d %s\n", p.elapsed(), p.at, p.of, p.name)
	}
}

// Step says what the comparison does now.
func (p *Progress) Step(format string, args ...any) {
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s %d/%d %s: %s", p.elapsed(), p.at, p.of, p.name, fmt.Sprintf(format, args...))
	}
}

// Clear empties the line, so that something else can be printed.
func (p *Progress) Clear() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

func (p *Progress) elapsed() string {
	d := time.Since(p.began).Round(time.Second)
	return fmt.Sprintf("%02d:%02d", int(d.Minutes()), int(d.Seconds())%60)
}
