package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestEnvIsWhatAShellReads(t *testing.T) {
	t.Parallel()
	p := here(t)
	st, err := p.loadState()
	if err != nil {
		t.Fatal(err)
	}
	const address = `postgres://u:it's$HOME@h/d?a=b&c=d`
	for _, s := range servers {
		if err := st.set(s.key, record{From: fromEnvironment, URL: address}); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := env(p, &out); err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("sh", "-c", out.String()+`printf %s "$POSTBUS_PGBOUNCER_URL"`)
	if got, err := shell.Output(); err != nil || string(got) != address {
		t.Errorf("a shell reads %q, error %v; want %q", got, err, address)
	}
}

func TestEnvNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	p := here(t)
	var out strings.Builder
	if err := env(p, &out); err == nil || !strings.Contains(err.Error(), "Redis 7") || !strings.Contains(err.Error(), "make servers-up") {
		t.Errorf("got %v, want the servers and the command", err)
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"postgres://u:secret@h/d", "postgres://h/d?user=u&password=secret", "postgres://u:secret@h:x y/d"} {
		if got := withoutPassword(address); strings.Contains(got, "secret") {
			t.Errorf("%s is shown as %s", address, got)
		}
		if _, err := hostPort(address, "1"); err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("an error shows the password: %v", err)
		}
	}
}
