// Package harness runs comparisons: ours beside peers and the limit, in turn, in one
// process and one database, and reports medians, spreads and bars.
package harness

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Comparison is one line of the bench.
type Comparison struct {
	// Name is how ONLY= names it.
	Name string
	// Shows is the bar in one sentence, as RESULTS.md prints it.
	Shows string
	// Needs are the servers without which it does not run.
	Needs []Server
	// Group says which command runs it.
	Group Group
	// Run measures. Whatever it creates stands in e's schema, which is dropped after it.
	Run func(ctx context.Context, e *Env) (*Report, error)
}

// Group is the comparisons that one command runs.
type Group int

const (
	// Plain: `make bench`.
	Plain Group = iota
	// Brokers: `make bench-brokers`, what the adapters do on real servers.
	Brokers
	// Soaks: `make soak`, what takes minutes each.
	Soaks
)

// Report is what a comparison has found.
type Report struct {
	Line  *Line
	Bars  []Bar
	Notes []string // what a reader of the figures must know, one sentence each
}

// Select picks the comparisons of a run: those that only names, whatever their group,
// or else all of the group. An unknown name is refused, and the error lists the known ones.
func Select(all []Comparison, only string, group Group) ([]Comparison, error) {
	if strings.TrimSpace(only) == "" {
		return slices.DeleteFunc(slices.Clone(all), func(c Comparison) bool { return c.Group != group }), nil
	}
	var picked []Comparison
	for name := range strings.SplitSeq(only, ",") {
		name = strings.TrimSpace(name)
		i := slices.IndexFunc(all, func(c Comparison) bool { return c.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("ONLY=%s: there is no comparison %q; use some of %s, separated by commas", only, name, strings.Join(names(all), ", "))
		}
		picked = append(picked, all[i])
	}
	return picked, nil
}

func names(all []Comparison) []string {
	var ns []string
	for _, c := range all {
		ns = append(ns, c.Name)
	}
	return ns
}
