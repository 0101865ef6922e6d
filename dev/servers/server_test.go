package main

import (
	"strings"
	"testing"
)

func TestChooseTakesWhatStandsBehind(t *testing.T) {
	t.Parallel()
	got, err := choose([]string{"pgbouncer", "kafka", "postgres15"})
	if err != nil || len(got) != 3 || got[0] != pgbouncer || got[1] != postgres15 || got[2] != kafka {
		t.Errorf("got %v, %v", got, err)
	}
	if all, err := choose(nil); err != nil || len(all) != len(servers) {
		t.Errorf("got %v, %v", all, err)
	}
	if _, err := choose([]string{"oracle"}); err == nil || !strings.Contains(err.Error(), "rabbitmq") {
		t.Errorf("got %v, want the names", err)
	}
}

// Only what is asked for is started, and the others' records and addresses stay.
func TestUpOfOneLeavesTheOthers(t *testing.T) {
	first := table(t, "redis://mine")
	second := *first
	second.key, second.variable = "second", "POSTBUS_TEST_SECOND_URL"
	servers = append(servers, &second)
	t.Setenv(first.variable, "redis://mine")
	t.Setenv(second.variable, "redis://mine")
	p := here(t)
	if err := up(p, &second); err != nil {
		t.Fatal(err)
	}
	if err := up(p, first); err != nil {
		t.Fatal(err)
	}
	st, err := p.loadState()
	if err != nil {
		t.Fatal(err)
	}
	if lines, missing := exports(st); len(missing) > 0 || strings.Count(lines, "redis://mine") != 2 {
		t.Errorf("got %q, missing %v", lines, missing)
	}
}

func TestKafkaAddressIsShown(t *testing.T) {
	t.Parallel()
	if got := withoutPassword("127.0.0.1:9092,h:1"); got != "127.0.0.1:9092,h:1" {
		t.Errorf("got %q", got)
	}
	if got := withoutPassword("me:secret@h:1"); strings.Contains(got, "secret") {
		t.Errorf("got %q", got)
	}
}

// A server that tells its clients where it is gets a port beforehand.
func TestComposeTellsKafkaItsPort(t *testing.T) {
	s := table(t, "127.0.0.1:1")
	s.composeKnows, s.composeURL = "POSTBUS_TEST_PORT", func(addr string) string { return addr }
	calls := fakeDocker(t, `case "$*" in *" port "*) echo 127.0.0.1:1;; *" up "*) test "$POSTBUS_TEST_PORT" -gt 1024 || exit 1;; esac`)
	if err := up(here(t)); err != nil {
		t.Fatalf("%v; calls:\n%s", err, calls())
	}
}
