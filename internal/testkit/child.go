package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

// childVariable tells a test binary that it is a child, and which one.
const childVariable = "POSTBUS_TESTKIT_CHILD"

var (
	children   = map[string]func(args []string){}
	mainCalled bool
)

// RegisterChild names a main function that StartChild can run. Call it from
// TestMain before Main, or from an init function.
func RegisterChild(name string, main func(args []string)) { children[name] = main }

// Main is the body of TestMain in a package that starts children. In a child
// it runs the child's main and exits.
func Main(m *testing.M) {
	mainCalled = true
	name, isChild := os.LookupEnv(childVariable)
	if !isChild {
		os.Exit(m.Run())
	}
	os.Unsetenv(childVariable)
	main, ok := children[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "run a child of the tests: none is registered as %q\n", name)
		os.Exit(2)
	}
	main(os.Args[1:])
	os.Exit(0)
}

// Child is the test's own binary, run once more as a process that may be
// killed at any instruction.
type Child struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	output output
	exited chan struct{} // closed when it has gone
	err    error         // how it went; read after exited is closed
}

// StartChild runs a registered main. The child gets the environment and the
// arguments, and no input. It is killed when the test ends or, on Linux, its
// parent dies. Its output is logged if the test fails.
func StartChild(t testing.TB, name string, args ...string) *Child {
	t.Helper()
	if !mainCalled {
		// Without it the child would run the whole test suite, and that its children.
		t.Fatalf("start child %q: the package lacks `func TestMain(m *testing.M) { testkit.Main(m) }`", name)
	}
	if children[name] == nil {
		t.Fatalf("start child %q: no main is registered under this name; see testkit.RegisterChild", name)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("start child %q: %v", name, err)
	}
	c := &Child{t: t, name: name, cmd: exec.Command(self, args...), exited: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), childVariable+"="+name)
	c.cmd.Stdout, c.cmd.Stderr = &c.output, &c.output
	c.cmd.WaitDelay = 5 * time.Second // a grandchild may hold the output open
	c.cmd.SysProcAttr = &syscall.SysProcAttr{}
	process.DieWithParent(c.cmd.SysProcAttr, syscall.SIGKILL)
	if err := process.Launch(c.cmd, func(err error) { c.err = err; close(c.exited) }); err != nil {
		t.Fatalf("start child %q: %v", name, err)
	}
	t.Cleanup(func() {
		c.Kill9()
		if t.Failed() {
			t.Logf("the output of child %q:\n%s", name, c.Output())
		}
	})
	return c
}

// PID is the child's process id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Kill9 kills the child with SIGKILL and returns when it is gone.
func (c *Child) Kill9() {
	c.Signal(syscall.SIGKILL)
	<-c.exited
}

// Stop freezes the child with SIGSTOP: it keeps its connections and its locks,
// and does nothing from now on. A child that has gone is no error. See Cont.
func (c *Child) Stop() {
	c.t.Helper()
	id, err := process.Identify(c.PID())
	if err == nil {
		err = id.Freeze(30 * time.Second)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, os.ErrNotExist) {
		c.t.Errorf("freeze child %q: %v", c.name, err)
	}
}

// Cont lets a stopped child go on, unaware of the time that has passed.
func (c *Child) Cont() { c.Signal(syscall.SIGCONT) }

// Signal sends any signal. A child that has gone is no error.
func (c *Child) Signal(sig syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.t.Errorf("send %s to child %q: %v", sig, c.name, err)
	}
}

// Wait waits until the child exits by itself and returns nil if its main
// returned. The test fails if it takes longer than timeout.
func (c *Child) Wait(timeout time.Duration) error {
	c.t.Helper()
	select {
	case <-c.exited:
		return c.err
	case <-time.After(timeout):
		c.t.Fatalf("wait for child %q: it still runs after %s", c.name, timeout)
		return nil
	}
}

// Exited is closed when the child has gone.
func (c *Child) Exited() <-chan struct{} { return c.exited }

// Output is what the child has written so far, to stdout and to stderr.
func (c *Child) Output() string { return c.output.String() }

// output is a buffer that may be read while a process writes to it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
