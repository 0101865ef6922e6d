package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// table replaces the table of servers by one that nothing answers for but the
// address given, and empties their variables.
func table(t *testing.T, answering string) *server {
	t.Helper()
	saved := servers
	t.Cleanup(func() { servers = saved })
	s := &server{
		key: "redis", title: "Fake", variable: "POSTBUS_TEST_FAKE_URL", composePort: 6379, composeURL: redisURL,
		answers: func(address string, _ bool) error {
			if address != answering {
				return net.ErrClosed
			}
			return nil
		},
	}
	servers = []*server{s}
	t.Setenv(s.variable, "")
	return s
}

// fakeDocker puts a docker into PATH that does as the script says.
func fakeDocker(t *testing.T, script string) (calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	script = "#!/bin/sh\necho \"$@\" >>" + log + "\n" + script
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("POSTBUS_SERVERS", "")
	return func() string {
		content, _ := os.ReadFile(log)
		return string(content)
	}
}

func TestVariableThatAnswersIsTaken(t *testing.T) {
	s := table(t, "redis://mine")
	t.Setenv(s.variable, "redis://mine")
	p := here(t)
	for range 2 { // a second up finds its own record of it
		if err := up(p); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := os.ReadFile(p.envFile()); string(got) != "export POSTBUS_TEST_FAKE_URL='redis://mine'\n" {
		t.Errorf(".dev/env holds %q", got)
	}
	if err := down(p); err != nil {
		t.Fatal(err)
	}
}

func TestVariableThatDoesNotAnswerIsNamed(t *testing.T) {
	s := table(t, "redis://mine")
	t.Setenv(s.variable, "redis://u:secret@other")
	err := up(here(t))
	if err == nil || !strings.Contains(err.Error(), s.variable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v, want the variable's name and no password", err)
	}
}

func TestPoolerAloneInTheEnvironmentIsRefused(t *testing.T) {
	upstream := table(t, "redis://mine")
	pooler := *upstream
	pooler.key, pooler.variable, pooler.behind = "pooler", "POSTBUS_TEST_POOLER_URL", upstream
	servers = append(servers, &pooler)
	t.Setenv(pooler.variable, "redis://mine")
	fakeDocker(t, `case "$*" in *port*) echo mine;; esac`)
	upstream.composeURL = func(addr string) string { return "redis://" + addr }
	if err := up(here(t)); err == nil || !strings.Contains(err.Error(), "set both") {
		t.Errorf("got %v", err)
	}
}

func TestComposeServesWhereDockerAnswers(t *testing.T) {
	table(t, "redis://127.0.0.1:49153/0")
	calls := fakeDocker(t, `case "$*" in *" port redis 6379") echo 127.0.0.1:49153;; esac`)
	p := here(t)
	if err := up(p); err != nil {
		t.Fatal(err)
	}
	if st, _ := p.loadState(); st.records["redis"].From != fromCompose {
		t.Errorf("got %+v", st.records)
	}
	before := calls()
	if !strings.Contains(before, "up --detach --wait redis") {
		t.Errorf("docker was called with:\n%s", before)
	}
	if err := up(p); err != nil || calls() != before {
		t.Errorf("a second up: error %v, calls:\n%s", err, calls())
	}
	if err := down(p); err != nil || !strings.Contains(calls(), "down --volumes") {
		t.Errorf("down: error %v, calls:\n%s", err, calls())
	}
	if err := env(p, io.Discard); err == nil {
		t.Error("after down there is an address")
	}
}

func TestComposeErrorNamesTheWayOut(t *testing.T) {
	table(t, "redis://none")
	fakeDocker(t, `case "$*" in *" up "*) echo no such image >&2; exit 1;; esac`)
	err := up(here(t))
	if err == nil || !strings.Contains(err.Error(), "no such image") || !strings.Contains(err.Error(), "POSTBUS_SERVERS=local") {
		t.Errorf("got %v", err)
	}
}

func TestDockerWithoutAnEngineDoesNotAnswer(t *testing.T) {
	fakeDocker(t, "exit 1")
	if (&docker{}).answers() {
		t.Error("a docker whose engine is not there answers")
	}
}
