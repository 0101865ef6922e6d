package process

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

func TestFreezeReturnsWhenNothingRuns(t *testing.T) {
	t.Parallel()
	p := start(t, "while :; do :; done")
	for range 20 {
		if err := p.Freeze(time.Minute); err != nil {
			t.Fatal(err)
		}
		if frozen, err := p.frozen(); runtime.GOOS == "linux" && !frozen {
			t.Fatalf("it still runs, %v", err)
		}
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Stop(syscall.SIGKILL, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(time.Minute); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("freeze what has gone: %v", err)
	}
}
