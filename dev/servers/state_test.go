package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

// here is a place of the test's own.
func here(t *testing.T) place {
	t.Helper()
	dir := t.TempDir()
	p := place{repo: dir, dev: dir + "/.dev"}
	if err := p.make(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestStateSurvivesAndVanishes(t *testing.T) {
	t.Parallel()
	p := here(t)
	st, err := p.loadState()
	if err != nil {
		t.Fatal(err)
	}
	want := record{From: fromLocal, URL: "redis://x", Identity: process.Identity{PID: 12, Started: "34"}, Port: 5, Dir: "/d"}
	if err := st.set("redis", want); err != nil {
		t.Fatal(err)
	}
	again, err := p.loadState()
	if err != nil {
		t.Fatal(err)
	}
	if got, known := again.get("redis"); !known || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := again.forget("redis"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(again.path); !os.IsNotExist(err) {
		t.Errorf("an empty state leaves its file: %v", err)
	}
}

func TestBrokenStateNamesItsFile(t *testing.T) {
	t.Parallel()
	p := here(t)
	if err := os.WriteFile(p.dev+"/state.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.loadState(); err == nil || !strings.Contains(err.Error(), "state.json") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

// `down` must not touch a process that has got the pid of ours.
func TestDownSparesAReusedPID(t *testing.T) {
	t.Parallel()
	p := here(t)
	st, err := p.loadState()
	if err != nil {
		t.Fatal(err)
	}
	id, err := process.Identify(os.Getpid()) // had it been taken for ours, this test would end here
	if err != nil {
		t.Fatal(err)
	}
	id.Started += "0"
	if err := st.set(redis.key, record{From: fromLocal, URL: "redis://127.0.0.1:1/0", Identity: id, Dir: p.dev + "/run/redis"}); err != nil {
		t.Fatal(err)
	}
	if err := down(p); err != nil {
		t.Fatal(err)
	}
	if st, err := p.loadState(); err != nil || len(st.records) != 0 {
		t.Errorf("after down: %v, error %v", st, err)
	}
}

func TestLockLetsOneInAtATime(t *testing.T) {
	t.Parallel()
	p, w := here(t), &progress{w: &strings.Builder{}}
	unlock, err := p.lock(w)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error)
	go func() {
		unlock, err := p.lock(w)
		if err == nil {
			unlock()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("a second got in (error %v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	unlock()
	if err := <-second; err != nil {
		t.Fatal(err)
	}
}
