package testkit

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

// PrivateBroker is a broker of one test's own, on a port that it keeps across
// restarts, with its data. It dies with the test, and on Linux with the test's
// process. Its methods return when the broker is in the state that they name,
// or fail the test. It is not safe for concurrent use.
type PrivateBroker struct {
	t       testing.TB
	name    string // as a person calls it
	addr    string
	url     string
	log     string // its file
	start   func() (*process.Process, error)
	answers func() error
	proc    *process.Process // nil while it does not run
}

// brokerPatience is how long it may take to start, on a machine that does much
// else.
const brokerPatience = 2 * time.Minute

// run starts it for the first time.
func (b *PrivateBroker) run() {
	b.t.Helper()
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("the log of the private %s:\n%s", b.name, b.tail())
		}
	})
	b.Start()
}

// Addr is host:port.
func (b *PrivateBroker) Addr() string { return b.addr }

// URL is the address as its clients take it.
func (b *PrivateBroker) URL() string { return b.url }

// Start starts it again, on its port and on what is left of its data.
func (b *PrivateBroker) Start() {
	b.t.Helper()
	if b.proc != nil {
		b.t.Fatalf("start a private %s: it runs already", b.name)
	}
	proc, err := b.start()
	if err != nil {
		b.t.Fatalf("start a private %s: %v", b.name, err)
	}
	b.proc = proc
	b.t.Cleanup(b.Kill) // nothing if it has ended before
	if err := proc.Ready(brokerPatience, b.answers); err != nil {
		b.t.Fatalf("start a private %s: %v", b.name, err)
	}
	if !proc.Alive() {
		b.t.Fatalf("start a private %s: somebody else answers at %s, and the process that was started is gone; run the test again", b.name, b.addr)
	}
}

// Kill kills it with SIGKILL, frozen or not. One that does not run is no error.
func (b *PrivateBroker) Kill() { b.end(syscall.SIGKILL) }

// Shutdown has it go in good order, as an operator would.
func (b *PrivateBroker) Shutdown() { b.end(syscall.SIGTERM) }

func (b *PrivateBroker) end(sig syscall.Signal) {
	b.t.Helper()
	if b.proc == nil {
		return
	}
	if err := b.proc.Stop(sig, 30*time.Second); err != nil {
		b.t.Fatalf("stop a private %s: %v", b.name, err)
	}
	<-b.proc.Exited()
	b.proc = nil
}

// Stop freezes it with SIGSTOP: it keeps its connections, the kernel takes what
// is sent to it and opens new ones for it, and nothing is answered. See Cont.
func (b *PrivateBroker) Stop() {
	b.t.Helper()
	b.mustRun("freeze")
	if err := b.proc.Freeze(30 * time.Second); err != nil {
		b.t.Fatalf("freeze a private %s: %v", b.name, err)
	}
}

// Cont lets a frozen broker go on, unaware of the time that has passed.
func (b *PrivateBroker) Cont() {
	b.t.Helper()
	b.mustRun("thaw")
	if err := b.proc.Signal(syscall.SIGCONT); err != nil {
		b.t.Fatalf("thaw a private %s: %v", b.name, err)
	}
}

func (b *PrivateBroker) mustRun(to string) {
	b.t.Helper()
	if b.proc == nil {
		b.t.Fatalf("%s a private %s: it does not run", to, b.name)
	}
}

func (b *PrivateBroker) tail() string {
	const most = 4000 // bytes
	content, err := os.ReadFile(b.log)
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(content[max(0, len(content)-most):])
}
