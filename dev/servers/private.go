package main

import (
	"os"
	"slices"
	"strings"

	"github.com/postbus/postbus/internal/pgserver"
)

// testBinaries is the folder of Postgres 15's binaries for the servers that
// tests start and crash themselves; "" where there are none. Where Postgres
// comes from Docker or from elsewhere nothing has needed them yet, so they are
// downloaded, but nothing is installed, and the demo does without.
func (u *upper) testBinaries() string {
	if !slices.Contains(servers, postgres15) {
		return ""
	}
	bin, err := edition15.find(u)
	if err == nil {
		return bin
	}
	if r, _ := u.state.get(postgres15.key); r.URL == "" {
		return "" // it has told why it is not up
	}
	_, noMaven := maven.find()
	if noMaven == nil || os.Getenv(mavenVariable) != "" {
		if bin, err = edition15.archive.get(local{upper: u, server: postgres15}); err == nil {
			return bin
		}
	}
	u.say("tests", "those that crash a Postgres of their own will fail, for want of its programs: install postgresql-15, or put mvn into PATH, or set %s or %s; %v",
		mavenVariable, pgserver.BinVariable, err)
	return ""
}

// binariesLine is the line of .dev/env that names them, or nothing.
func (p place) binariesLine() string {
	content, err := os.ReadFile(p.envFile())
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, "export "+pgserver.BinVariable+"=") {
			return line
		}
	}
	return ""
}
