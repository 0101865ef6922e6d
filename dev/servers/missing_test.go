package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeProgram puts a script into a folder of its own.
func fakeProgram(t *testing.T, name, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// nothingHere is a machine without root, apt, Docker, and servers of the
// person's own: only what is in the folders given is in PATH.
func nothingHere(t *testing.T, path ...string) {
	t.Helper()
	t.Setenv("PATH", strings.Join(path, ":"))
	t.Setenv(mavenVariable, "")
	for _, s := range servers {
		t.Setenv(s.variable, "")
	}
}

func TestProgramIsTakenFromItsFolderThenFromPath(t *testing.T) {
	redis6 := fakeProgram(t, "redis-server", "echo 'Redis server v=6.0.16 sha=0 bits=64'")
	redis7 := fakeProgram(t, "redis-server", "echo 'Redis server v=7.2.4 sha=0 bits=64'")
	valkey := fakeProgram(t, "redis-server", "echo 'Valkey server v=8.1.0 sha=0 bits=64'")
	for name, test := range map[string]struct{ folders, path, want string }{
		"the folder comes first":       {redis7, valkey, redis7},
		"PATH where the folder is old": {redis6, valkey, valkey},
		"PATH alone":                   {"/nowhere", redis7, redis7},
	} {
		nothingHere(t, test.path)
		p := redisServer
		p.folders = []string{test.folders}
		if got, err := p.find(); err != nil || got != filepath.Join(test.want, "redis-server") {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	nothingHere(t, redis6)
	p := redisServer
	p.folders = nil
	if l := p.missing(nil); l == nil || !strings.Contains(l.why, "Redis 6; 7.0 or later") {
		t.Errorf("an old Redis: got %+v", l)
	}
}

// All that is missing is told at once, before anything is started.
func TestNothingStartsWhileSomethingIsMissing(t *testing.T) {
	table(t, "redis://none")
	lost := *servers[0]
	lost.key, lost.title, lost.variable = "lost", "Lost", "POSTBUS_TEST_LOST_URL"
	lost.missing = func(*upper) *lack {
		return &lack{why: "lost is not in PATH", debian: "lost-server", byHand: "a lost anywhere in PATH", variable: "POSTBUS_TEST_LOST_URL=lost://host"}
	}
	servers = append(servers, &lost)
	nothingHere(t)
	err := up(here(t)) // were the first server started, this would end in a nil start
	if !errors.Is(err, errNotInstalled) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"not installed: Lost; it can't be done for you", "nothing was started", "lost is not in PATH", "apt-get install lost-server", "Docker", "export POSTBUS_TEST_LOST_URL=lost://host"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
}

// An address spares the program.
func TestNothingIsMissingWhereAnAddressIsGiven(t *testing.T) {
	table(t, "redis://mine")
	servers[0].missing = func(*upper) *lack { return &lack{why: "not asked for"} }
	nothingHere(t)
	t.Setenv(servers[0].variable, "redis://mine")
	if err := up(here(t)); err != nil {
		t.Fatal(err)
	}
}

func TestPostgresNamesEachWayToIt(t *testing.T) {
	u := &upper{place: here(t), progress: &progress{w: &strings.Builder{}}}
	none := edition{major: 9, archive: postgres15Archive, lack: edition15.lack} // no machine has it by chance
	tools := fakeProgram(t, "tar", "")
	if err := os.Link(filepath.Join(tools, "tar"), filepath.Join(tools, "xz")); err != nil {
		t.Fatal(err)
	}
	saved := maven.folders
	t.Cleanup(func() { maven.folders = saved })
	maven.folders = nil

	nothingHere(t)
	l := none.missing(u)
	if l == nil || !strings.Contains(l.why, "tar is not in PATH") {
		t.Errorf("without tar: got %+v", l)
	}
	nothingHere(t, tools)
	l = none.missing(u)
	if l == nil || !strings.Contains(l.why, mavenVariable) || !strings.Contains(l.byHand, "mvn") {
		t.Errorf("without Maven: got %+v", l)
	}
	t.Setenv(mavenVariable, "file:///somewhere")
	if l := none.missing(u); l != nil {
		t.Errorf("with a repository: got %+v", l)
	}
	nothingHere(t, tools, fakeProgram(t, "mvn", ""))
	if l := none.missing(u); l != nil {
		t.Errorf("with Maven: got %+v", l)
	}
}

func TestPostgres15ComesFromItsVariable(t *testing.T) {
	dir := fakeProgram(t, "postgres", "echo 'postgres (PostgreSQL) 15.3'")
	if err := os.Link(filepath.Join(dir, "postgres"), filepath.Join(dir, "initdb")); err != nil {
		t.Fatal(err)
	}
	u := &upper{place: here(t)}
	t.Setenv("POSTBUS_POSTGRES_BIN", dir)
	if got, err := edition15.find(u); err != nil || got != dir {
		t.Errorf("got %q, %v", got, err)
	}
	t.Setenv("POSTBUS_POSTGRES_BIN", t.TempDir())
	if _, err := edition15.find(u); err == nil || !strings.Contains(err.Error(), "POSTBUS_POSTGRES_BIN is set") {
		t.Errorf("a folder without binaries: got %v", err)
	}
}
