package main

import (
	"errors"
	"fmt"
	"strings"
)

// lack is something that a person has to install: its package in the common
// package managers ("" where there is none), and the way without them.
type lack struct {
	what     string // the server, as a person calls it
	why      string
	debian   string
	fedora   string
	brew     string
	byHand   string // without root
	variable string // an address instead
}

// missing tells all at once what `up` would have to start and can't, before
// it has started anything.
func (u *upper) missing() error {
	var lacks []lack
	for _, s := range u.servers {
		if s.missing == nil || u.origin(s) != fromLocal {
			continue
		}
		if l := s.missing(u); l != nil {
			l.what = s.title
			lacks = append(lacks, *l)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	_, err := asRoot()
	return waysOut(lacks, err)
}

// waysOut is one sentence that says what is missing, and a list of what helps.
func waysOut(lacks []lack, noRoot error) error {
	var whats, whys, byHand, variables []string
	packages := map[string][]string{}
	for _, l := range lacks {
		whats = append(whats, l.what)
		whys = append(whys, "  "+l.what+": "+strings.ReplaceAll(l.why, "\n", "\n    "))
		byHand = unique(byHand, l.byHand)
		variables = unique(variables, l.variable)
		for manager, name := range map[string]string{"debian": l.debian, "fedora": l.fedora, "brew": l.brew} {
			for _, one := range strings.Fields(name) {
				packages[manager] = unique(packages[manager], one)
			}
		}
	}
	if noRoot == nil {
		noRoot = errors.New("apt-get has no package for it")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s; it can't be done for you (%v), so nothing was started.\n", strings.Join(whats, ", "), noRoot)
	fmt.Fprintf(&b, "%s\nDo one of these, then try again:\n", strings.Join(whys, "\n"))
	for _, m := range []struct{ name, command, key string }{
		{"Debian, Ubuntu", "sudo apt-get install", "debian"},
		{"Fedora, RHEL", "sudo dnf install", "fedora"},
		{"macOS", "brew install", "brew"},
	} {
		if names := packages[m.key]; len(names) > 0 {
			fmt.Fprintf(&b, "  %-16s %s %s\n", m.name, m.command, strings.Join(names, " "))
		}
	}
	const next = "\n                   "
	fmt.Fprintf(&b, "  %-16s %s\n", "without root", strings.Join(byHand, next))
	fmt.Fprintf(&b, "  %-16s start it: `docker info` and `docker compose version` must answer\n", "Docker")
	fmt.Fprintf(&b, "  %-16s export %s", "servers of yours", strings.Join(variables, next+"export "))
	return fmt.Errorf("%w: %s", errNotInstalled, b.String())
}

// unique appends what is neither empty nor there already.
func unique(list []string, s string) []string {
	for _, old := range list {
		if old == s {
			return list
		}
	}
	if s == "" {
		return list
	}
	return append(list, s)
}
