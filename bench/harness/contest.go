package harness

import (
	"context"
	"fmt"
	"runtime"
	"runtime/pprof"
)

// Runner is a program in a contest. Run does the work once, on that many rows, and
// gives a rate per second; whatever it must prepare is done before its clock starts.
type Runner struct {
	Name string
	Run  func(ctx context.Context, rows int) (rate float64, err error)
}

// Contest has programs do the same work in turn, round after round.
type Contest struct {
	Rounds int
	Rows   int
	// SlowRows is what a peer is tried on first. One that is slower than a third of
	// ours takes part in that one round only.
	SlowRows int

	Ours  Runner
	Limit Runner // its Run may be nil: there is none
	Peers []Runner
}

// slowPeer: a peer slower than ours by this factor runs one round.
const slowPeer = 3

// The names under which an Outcome holds the rates of ours, of the same program once
// more in each round (A/A), and of the limit.
const (
	Ours  = "ours"
	Again = "again"
	Limit = "limit"
)

// Outcome holds every rate that was measured, by round.
type Outcome struct {
	rates  map[string][]float64
	cpu    map[string][]float64 // of this process, in microseconds a row, preparations included
	peers  []string
	rounds int
}

// Run holds the contest. Which program begins a round changes from round to round, so
// that none always runs on what another has left in the caches. The first run of ours
// warms up and is not counted.
func (c Contest) Run(ctx context.Context, e *Env) (*Outcome, error) {
	o := &Outcome{rates: map[string][]float64{}, cpu: map[string][]float64{}, rounds: c.Rounds}
	turn := func(as string, r Runner, rows int) (float64, error) {
		runtime.GC() // each pays for its own garbage
		var rate float64
		var err error
		// A CPU profile tells the programs apart: go tool pprof -tagfocus program=ours
		before := cpuTime()
		pprof.Do(ctx, pprof.Labels("program", as), func(ctx context.Context) { rate, err = r.Run(ctx, rows) })
		o.cpu[as] = append(o.cpu[as], (cpuTime()-before).Seconds()*1e6/float64(rows))
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", as, err)
		}
		return rate, nil
	}

	e.Progress.Step("warm-up")
	yardstick, err := turn(Ours, c.Ours, c.Rows)
	if err != nil {
		return nil, err
	}
	type entrant struct {
		as string
		Runner
	}
	entrants := []entrant{{Ours, c.Ours}, {Again, c.Ours}}
	if c.Limit.Run != nil {
		entrants = []entrant{{Ours, c.Ours}, {Limit, c.Limit}, {Again, c.Ours}}
	}
	for _, p := range c.Peers {
		e.Progress.Step("%s, first on %d rows", p.Name, c.SlowRows)
		rate, err := turn(p.Name, p, c.SlowRows)
		if err != nil {
			return nil, err
		}
		o.peers = append(o.peers, p.Name)
		if rate*slowPeer < yardstick {
			o.rates[p.Name] = []float64{rate}
		} else {
			entrants = append(entrants, entrant{p.Name, p})
		}
	}
	for round := range c.Rounds {
		for i := range entrants {
			x := entrants[(round+i)%len(entrants)]
			e.Progress.Step("round %d of %d: %s", round+1, c.Rounds, x.as)
			rate, err := turn(x.as, x.Runner, c.Rows)
			if err != nil {
				return nil, err
			}
			o.rates[x.as] = append(o.rates[x.as], rate)
		}
	}
	return o, nil
}

// Rate is the median of a program's rates.
func (o *Outcome) Rate(name string) float64 { return Median(o.rates[name]) }

// CPU is what a row costs in CPU of this process (the server's is not in it), in
// microseconds, preparations of a round included.
func (o *Outcome) CPU(name string) float64 { return Median(o.cpu[name]) }

// Ratios are those of ours to name's, taken within each round, since what disturbs a
// round disturbs both; where one of them ran once, to the median of the other.
func (o *Outcome) Ratios(name string) []float64 {
	ours, theirs := o.rates[Ours], o.rates[name]
	var rs []float64
	for i, r := range ours {
		t := Median(theirs)
		if len(theirs) == len(ours) {
			t = theirs[i]
		}
		rs = append(rs, r/t)
	}
	return rs
}

// Ratio is the median of Ratios.
func (o *Outcome) Ratio(name string) float64 { return Median(o.Ratios(name)) }

// Bar asks that ours reaches at least so much of name's rate.
func (o *Outcome) Bar(name string, least float64) Bar {
	return Bar{Figure: "ratio_" + name, Value: o.Ratio(name), Spread: SpreadOf(o.Ratios(name)), Least: least}
}

// Line begins the comparison's line: ours, the limit and the peers with their ratios,
// the same program against itself, and the spreads of all ratios taken by rounds.
func (o *Outcome) Line(name string) *Line {
	l := NewLine(name).Figure(Ours, o.Rate(Ours))
	if len(o.rates[Limit]) > 0 {
		l.Figure(Limit, o.Rate(Limit)).Figure("ratio_limit", o.Ratio(Limit))
	}
	for _, p := range o.peers {
		l.Figure(p, o.Rate(p)).Figure("ratio_"+p, o.Ratio(p))
	}
	l.Figure("aa", o.Ratio(Again))
	for _, p := range o.peers {
		if len(o.rates[p]) > 1 {
			l.Text("spread_"+p, SpreadOf(o.Ratios(p)).String())
		}
	}
	if len(o.rates[Limit]) > 0 {
		l.Text("spread_limit", SpreadOf(o.Ratios(Limit)).String())
	}
	l.Text("spread_aa", SpreadOf(o.Ratios(Again)).String())
	l.Text("rounds", fmt.Sprint(o.rounds))
	return l
}
