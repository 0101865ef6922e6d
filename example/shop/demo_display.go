package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	liveInterval  = 200 * time.Millisecond // between two looks of a terminal's status line
	plainInterval = 2 * time.Second        // between two status lines elsewhere
)

// display says what is going on: on a terminal with a status line that is
// written over, elsewhere with plain lines. It is safe for use by several goroutines.
type display struct {
	out   io.Writer
	live  bool
	width func() int
	began time.Time

	mu     sync.Mutex
	status string // on the terminal, below everything else
	spin   int
	plain  time.Time // when the last plain status line was written
}

func newDisplay(out *os.File) *display {
	fd := int(out.Fd())
	return &display{
		out: out, live: term.IsTerminal(fd) && os.Getenv("TERM") != "dumb", began: time.Now(),
		width: func() int {
			if width, _, err := term.GetSize(fd); err == nil && width > 0 {
				return width
			}
			return 80
		},
	}
}

// step begins a scene: what is shown, and why it matters.
func (d *display) step(n, of int, what, why string) {
	d.write(fmt.Sprintf("\n[%d/%d] %s\n      %s\n", n, of, wrap(what), wrap(why)))
}

// wrap breaks words into lines that fit a terminal of 80 columns, below the
// first word of a step.
func wrap(words string) string {
	var b strings.Builder
	column := 6
	for i, word := range strings.Fields(words) {
		switch {
		case i == 0:
		case column+1+len(word) > 79:
			b.WriteString("\n      ")
			column = 6
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}

// note says what has come about.
func (d *display) note(format string, args ...any) {
	d.write(fmt.Sprintf("%7s  %s\n", d.clock(), fmt.Sprintf(format, args...)))
}

// say writes words as they are.
func (d *display) say(words string) { d.write(words + "\n") }

// progress shows the state of affairs, and on no terminal only now and then.
func (d *display) progress(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.live {
		if time.Since(d.plain) >= plainInterval {
			d.plain = time.Now()
			fmt.Fprintf(d.out, "%7s  %s\n", d.clock(), line)
		}
		return
	}
	d.erase()
	d.spin++
	line = fmt.Sprintf("%7s %c %s", d.clock(), `|/-\`[d.spin%4], line)
	if most := d.width() - 1; len(line) > most { // a line that wraps cannot be erased
		line = line[:max(most, 0)]
	}
	d.status = line
	fmt.Fprint(d.out, line)
}

// end takes the status line away.
func (d *display) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.erase()
	d.status = ""
}

func (d *display) write(words string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.erase()
	fmt.Fprint(d.out, words+d.status)
}

func (d *display) erase() {
	if d.status != "" {
		fmt.Fprint(d.out, "\r\x1b[K")
	}
}

// Write lets a table be printed.
func (d *display) Write(p []byte) (int, error) {
	d.write(string(p))
	return len(p), nil
}

func (d *display) clock() string { return fmt.Sprintf("%.1f s", time.Since(d.began).Seconds()) }

// journal keeps the last lines of the log, to be shown if something goes wrong
// that was not meant to.
type journal struct {
	mu    sync.Mutex
	lines []string
}

const journalLines = 12

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(string(p)) {
		if !strings.Contains(line, madeToFail) {
			j.lines = append(j.lines, strings.TrimSuffix(line, "\n"))
		}
	}
	j.lines = j.lines[max(0, len(j.lines)-journalLines):]
	return len(p), nil
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.lines) == 0 {
		return "The log is empty."
	}
	return "The last lines of the log:\n  " + strings.Join(j.lines, "\n  ")
}
