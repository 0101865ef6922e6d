package process

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Freeze stops the process with SIGSTOP, and returns when none of its threads
// runs any more: the signal alone leaves them until each has noticed it. Only
// Linux tells; elsewhere it returns at once.
func (id Identity) Freeze(patience time.Duration) error {
	if err := id.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze process %d: %w", id.PID, err)
	}
	if runtime.GOOS != "linux" {
		return nil
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		frozen, err := id.frozen()
		if err != nil || frozen {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("freeze process %d: some of its threads still run %s after SIGSTOP", id.PID, patience)
		}
	}
}

func (id Identity) frozen() (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", id.PID))
	if err == nil && len(threads) == 0 {
		err = os.ErrProcessDone
	}
	if err != nil {
		return false, fmt.Errorf("freeze process %d: %w", id.PID, err)
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if err != nil {
			continue // it has ended since
		}
		if state, _, err := parseStat(stat); err != nil || state != "T" && state != "Z" && state != "X" {
			return false, err
		}
	}
	return true, nil
}
