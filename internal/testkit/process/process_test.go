package process

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func start(t *testing.T, args ...string) *Process {
	t.Helper()
	dir := t.TempDir()
	p, err := Start(Spec{
		Program: "/bin/sh", Args: append([]string{"-c"}, args...), Dir: dir, Log: filepath.Join(dir, "log"),
		Account: Account{Name: "yourself"}, DieWithParent: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(syscall.SIGKILL, time.Minute) })
	return p
}

func TestIdentityTellsAReusedPID(t *testing.T) {
	t.Parallel()
	p := start(t, "exec sleep 600")
	if !p.Alive() {
		t.Fatal("a process that runs is not alive")
	}
	other := Identity{PID: p.PID, Started: p.Started + "0"}
	if other.Alive() {
		t.Error("a process that started at another time passes for this one")
	}
	if err := other.Signal(syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to a process that started at another time: got %v", err)
	}
	if err := p.Stop(syscall.SIGTERM, time.Minute); err != nil || p.Alive() {
		t.Errorf("stop: error %v, alive %v", err, p.Alive())
	}
	if err := p.Stop(syscall.SIGTERM, time.Minute); err != nil {
		t.Errorf("stop what has gone: %v", err)
	}
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	t.Parallel()
	p := start(t, `trap "" TERM; echo deaf; while :; do sleep 0.01; done`)
	err := p.Ready(time.Minute, func() error {
		if !strings.Contains(logTail(p.spec.Log), "deaf") {
			return errors.New("it still listens")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(syscall.SIGTERM, 100*time.Millisecond); err != nil || p.Alive() {
		t.Errorf("stop: error %v, alive %v", err, p.Alive())
	}
}

func TestReadyTellsWhyItExited(t *testing.T) {
	t.Parallel()
	p := start(t, "echo no room left; exit 4")
	err := p.Ready(time.Minute, func() error { return errors.New("mute") })
	if err == nil || !strings.Contains(err.Error(), "no room left") || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("got %v, want the exit status and the log", err)
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	stat := "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3"
	state, started, err := parseStat([]byte(stat))
	if err != nil || state != "S" || started != "987654" {
		t.Errorf("got %q, %q, %v", state, started, err)
	}
	for _, broken := range []string{"", "7 a S", "7 (a) S 1 2"} {
		if _, _, err := parseStat([]byte(broken)); err == nil {
			t.Errorf("%q: no error", broken)
		}
	}
}

func TestReachesStopsAtAClosedParent(t *testing.T) {
	t.Parallel()
	stranger := Account{Name: "stranger", uid: 54321, gid: 54321, switches: true}
	dir := filepath.Join(t.TempDir(), "closed", "inner")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if stranger.Reaches(dir) {
		t.Error("a stranger walks through a folder of mode 0700")
	}
	if !stranger.Reaches("/") {
		t.Error("a stranger does not reach the root")
	}
	if !(Account{}).Reaches(dir) {
		t.Error("the caller's own account is kept out")
	}
}
