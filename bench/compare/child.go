package compare

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/postbus/postbus/bench/harness"
)

// children are the parts of comparisons that need a process of their own: this program
// once more, under another name. Each gets the schema of its comparison and writes what
// it has found to standard output.
var children = map[string]func(ctx context.Context, e *harness.Env, out *bufio.Writer) error{}

const (
	childName   = "POSTBUS_BENCH_CHILD"
	childSchema = "POSTBUS_BENCH_SCHEMA"
)

// Child does the work of a child process, if this is one.
func Child() bool {
	name := os.Getenv(childName)
	if name == "" {
		return false
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	out := bufio.NewWriter(os.Stdout)
	e, err := harness.JoinEnv(ctx, os.Getenv(childSchema))
	if err == nil {
		err = children[name](ctx, e, out)
		e.Pool.Close()
	}
	if flushErr := out.Flush(); err == nil {
		err = flushErr
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(os.Stderr, "bench, child %s: %v\n", name, err)
		os.Exit(1)
	}
	return true
}

// child makes a process of the child of that name; it ends with ctx, and with us.
func child(ctx context.Context, e *harness.Env, name string, env ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start a process of our own program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(append(os.Environ(), childName+"="+name, childSchema+"="+e.Schema), env...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}
