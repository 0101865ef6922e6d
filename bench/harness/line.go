package harness

import (
	"strings"
)

// Line is what a comparison prints: `bench NAME ours=.. limit=.. ratio_limit=..`.
type Line struct {
	name   string
	fields []string
}

// NewLine begins the line of the comparison of that name.
func NewLine(name string) *Line { return &Line{name: name} }

// Figure adds name=v.
func (l *Line) Figure(name string, v float64) *Line { return l.Text(name, number(v)) }

// Text adds name=value; value holds no blanks.
func (l *Line) Text(name, value string) *Line {
	l.fields = append(l.fields, name+"="+strings.ReplaceAll(value, " ", "_"))
	return l
}

// Latency adds NAMEp50_ms and NAMEp99_ms.
func (l *Line) Latency(prefix string, p50ms, p99ms float64) *Line {
	return l.Figure(prefix+"p50_ms", p50ms).Figure(prefix+"p99_ms", p99ms)
}

func (l *Line) String() string {
	return "bench " + l.name + " " + strings.Join(l.fields, " ")
}
