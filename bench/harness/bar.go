package harness

import "math"

// Bar is one demand on one figure. A missed one is reported, never an error.
type Bar struct {
	Figure string  // as the line names it, with what it is of
	Value  float64 // measured
	Spread Spread  // over the rounds; zero when there is none
	Least  float64 // Value must reach it; NaN or 0: no such demand
	Most   float64 // Value must not exceed it; 0: no such demand
	Target bool    // an absolute figure: depends on the machine, so a target and no bar
}

// Met tells whether the figure stands where it should.
func (b Bar) Met() bool {
	if math.IsNaN(b.Value) {
		return false
	}
	return (b.Least == 0 || b.Value >= b.Least) && (b.Most == 0 || b.Value <= b.Most)
}

// Demand says what is asked: ">= 0.60", "<= 2.00".
func (b Bar) Demand() string {
	d := ""
	if b.Least != 0 {
		d = ">= " + number(b.Least)
	}
	if b.Most != 0 {
		if d != "" {
			d += ", "
		}
		d += "<= " + number(b.Most)
	}
	return d
}

// Verdict is "met", "missed", or for a target "reached" or "not reached".
func (b Bar) Verdict() string {
	switch {
	case b.Target && b.Met():
		return "reached"
	case b.Target:
		return "not reached"
	case b.Met():
		return "met"
	}
	return "missed"
}

// Measured is the value, with its spread over the rounds if there were any.
func (b Bar) Measured() string {
	if b.Spread == (Spread{}) {
		return number(b.Value)
	}
	return number(b.Value) + " (" + b.Spread.String() + ")"
}
