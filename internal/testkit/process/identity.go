package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Identity names one process for good: the kernel hands out a pid again, but
// not together with the moment at which its process started.
type Identity struct {
	PID     int    `json:"pid"`
	Started string `json:"started"` // as the kernel tells it; only ever compared
}

// Identify reads the identity of a running process. A zombie has none: it
// only waits for its parent to look at it.
func Identify(pid int) (Identity, error) {
	if pid <= 0 {
		return Identity{}, fmt.Errorf("identify process %d: no such pid", pid)
	}
	if runtime.GOOS != "linux" {
		out, err := exec.Command("ps", "-o", "lstart=", "-p", strconv.Itoa(pid)).Output()
		if err != nil {
			return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
		}
		return Identity{PID: pid, Started: strings.TrimSpace(string(out))}, nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	state, started, err := parseStat(stat)
	if err != nil {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	if state == "Z" || state == "X" {
		return Identity{}, fmt.Errorf("identify process %d: %w", pid, os.ErrProcessDone)
	}
	return Identity{PID: pid, Started: started}, nil
}

// parseStat takes state (field 3) and start time (field 22) out of
// /proc/PID/stat. The program's name before them may hold spaces and brackets.
func parseStat(stat []byte) (state, started string, err error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return "", "", errors.New("read /proc stat: no program name in it")
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return "", "", fmt.Errorf("read /proc stat: %d fields after the name, want 20", len(fields))
	}
	return fields[0], fields[19], nil
}

// Alive reports whether this very process still runs.
func (id Identity) Alive() bool {
	now, err := Identify(id.PID)
	return err == nil && now == id
}

// Signal sends sig to this very process, or returns os.ErrProcessDone.
func (id Identity) Signal(sig syscall.Signal) error {
	if !id.Alive() {
		return os.ErrProcessDone
	}
	return syscall.Kill(id.PID, sig)
}

// Stop asks the process to go and kills it if it has not gone within patience.
// It returns once the process is gone; one that had gone before is no error.
func (id Identity) Stop(ask syscall.Signal, patience time.Duration) error {
	for _, sig := range []syscall.Signal{ask, syscall.SIGKILL} {
		err := id.Signal(sig)
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("stop process %d with %s: %w", id.PID, sig, err)
		}
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if !id.Alive() {
				return nil
			}
		}
	}
	return fmt.Errorf("stop process %d: still there %s after SIGKILL", id.PID, patience)
}
