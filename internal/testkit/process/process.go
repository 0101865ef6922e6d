// Package process starts the servers that tests and the demo need: detached
// or bound to their parent, as an account that is not root, and known by an
// identity that a reused pid cannot fake. It uses the standard library only,
// so that dev/servers builds before any module is downloaded.
package process

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Spec says what to start. Program, Dir and Log are required.
type Spec struct {
	Program string
	Args    []string
	Dir     string // working folder, which the account must be able to enter
	Log     string // file that stdout and stderr are appended to
	Account Account
	Env     []string // NAME=value, beside PATH, HOME (which is Dir), LC_ALL and TZ

	// DieWithParent has the kernel send the process ParentDeath when we die (on
	// Linux). Without it the process outlives us, in a session of its own.
	DieWithParent bool
	ParentDeath   syscall.Signal // SIGQUIT if 0; a Java program only answers that one with its stacks
}

// Process is a server that we have started.
type Process struct {
	Identity
	spec   Spec
	exited chan struct{} // closed when it has gone
	err    error         // how it went; read after exited is closed
}

// Start starts it and does not wait until it answers: see Ready.
func Start(spec Spec) (*Process, error) {
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: open its log: %w", filepath.Base(spec.Program), err)
	}
	defer log.Close()

	cmd := exec.Command(spec.Program, spec.Args...)
	cmd.Dir, cmd.Env = spec.Dir, append(environment(spec.Dir), spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: spec.Account.credential()}
	if spec.DieWithParent {
		DieWithParent(cmd.SysProcAttr, cmp.Or(spec.ParentDeath, syscall.SIGQUIT))
	}

	p := &Process{spec: spec, exited: make(chan struct{})}
	if err := Launch(cmd, func(err error) { p.err = err; close(p.exited) }); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Program, err)
	}
	p.Identity, err = Identify(cmd.Process.Pid)
	if err != nil {
		p.Identity = Identity{PID: cmd.Process.Pid} // gone already: Ready tells why
	}
	return p, nil
}

// Launch starts cmd and calls gone, in another goroutine, once it has exited.
// The kernel ties a parent-death signal to the thread that started the child,
// so that goroutine keeps its thread from start to end.
func Launch(cmd *exec.Cmd, gone func(error)) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			gone(cmd.Wait())
		}
	}()
	return <-started
}

// environment is what a server sees: nothing of ours, since a PGPORT or a
// PGDATA in the developer's shell would steer it elsewhere.
func environment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C", "TZ=UTC"}
}

// Run runs a program of the account's to its end, as initdb is run. Its
// output becomes part of the error.
func Run(a Account, dir string, stdin string, program string, args ...string) error {
	_, err := Output(Spec{Program: program, Args: args, Dir: dir, Account: a}, stdin)
	return err
}

// Output is Run for a Spec, whose Log is not used: it returns what the program
// has written, to stdout and to stderr.
func Output(spec Spec, stdin string) ([]byte, error) {
	cmd := exec.Command(spec.Program, spec.Args...)
	cmd.Dir, cmd.Env = spec.Dir, append(environment(spec.Dir), spec.Env...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: spec.Account.credential()}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("run %s as %s: %w\n%s", filepath.Base(spec.Program), spec.Account.Name, err, bytes.TrimSpace(out))
	}
	return out, err
}

// Ready waits until answers returns nil. A process that exits or stays mute
// becomes an error that holds the end of its log.
func (p *Process) Ready(timeout time.Duration, answers func() error) error {
	name := filepath.Base(p.spec.Program)
	deadline := time.After(timeout)
	for {
		err := answers()
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("start %s: it exited (%w); the end of %s:\n%s", name, p.exitError(), p.spec.Log, logTail(p.spec.Log))
		case <-deadline:
			return fmt.Errorf("start %s: no answer within %s: %w; the end of %s:\n%s", name, timeout, err, p.spec.Log, logTail(p.spec.Log))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *Process) exitError() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Exited is closed when the process has gone.
func (p *Process) Exited() <-chan struct{} { return p.exited }

func logTail(path string) string {
	const most = 2000 // bytes: enough for the reason, short enough to read
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(content) > most {
		content = content[len(content)-most:]
	}
	return strings.TrimSpace(string(content))
}
