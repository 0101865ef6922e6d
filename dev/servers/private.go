package main

import (
	"os"
	"slices"
	"strings"

	"github.com/postbus/postbus/internal/pgserver"
)

// private is what tests start and crash servers of their own from.
type private struct {
	server    *server
	variable  string
	find      func(u *upper) (string, error)
	download  func(l local) (string, error)
	otherwise string // what a person can do
}

var privates = []private{
	{postgres15, pgserver.BinVariable, edition15.find, edition15.archive.get, "install postgresql-15"},
	kafkaJars.private(kafka),
	elasticmqJars.private(elasticmq),
}

func (j jars) private(s *server) private {
	return private{s, j.variable, j.find, j.get, "unset " + s.variable}
}

// testPrograms are the lines of .dev/env that name them; none where there are
// none. Where a server comes from Docker or from elsewhere nothing has needed
// them yet, so they are downloaded, but nothing is installed, and the demo
// does without.
func (u *upper) testPrograms() (lines string) {
	for _, p := range privates {
		if !slices.Contains(servers, p.server) {
			continue
		}
		folder, err := p.find(u)
		if err != nil && !slices.Contains(u.servers, p.server) {
			continue
		}
		if err != nil {
			if r, _ := u.state.get(p.server.key); r.URL == "" {
				continue // it has told why it is not up
			}
			folder, err = u.downloadFor(p)
		}
		if err != nil {
			u.say("tests", "those that crash a %s of their own will fail, for want of its programs: %s, or put mvn into PATH, or set %s or %s; %v",
				p.server.title, p.otherwise, mavenVariable, p.variable, err)
			continue
		}
		lines += export(p.variable, folder)
	}
	return lines
}

func (u *upper) downloadFor(p private) (string, error) {
	_, noMaven := maven.find()
	if noMaven != nil && os.Getenv(mavenVariable) == "" {
		return "", noMaven
	}
	return p.download(local{upper: u, server: p.server})
}

// programLines are the lines of .dev/env that testPrograms has put there.
func (p place) programLines() (lines string) {
	content, err := os.ReadFile(p.envFile())
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(content)) {
		for _, private := range privates {
			if strings.HasPrefix(line, "export "+private.variable+"=") {
				lines += line
			}
		}
	}
	return lines
}
