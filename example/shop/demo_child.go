package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// relayCommand is the hidden subcommand by which this program runs itself once
// more, as a relay and nothing else: a process that can be killed.
const relayCommand = "relay"

// relayProcess is a relay in a process of its own.
type relayProcess struct {
	name    string
	cmd     *exec.Cmd
	stdin   io.Closer
	stopped atomic.Bool   // we have asked it to end
	exited  chan struct{} // closed when it has
	err     error         // how; read after exited is closed
}

// startRelay starts one. onExit is told if it ends without being asked to.
func startRelay(name string, stage *stage, stderr io.Writer, onExit func(error)) (*relayProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &relayProcess{name: name, cmd: exec.Command(self, relayCommand, "-stage", stage.name), exited: make(chan struct{})}
	p.cmd.Stderr = stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
		if !p.stopped.Load() {
			onExit(fmt.Errorf("%s has ended by itself (%v)", name, p.err))
		}
	}()
	return p, nil
}

func (p *relayProcess) pid() int { return p.cmd.Process.Pid }

// kill is kill -9: the process executes no further instruction.
func (p *relayProcess) kill() {
	p.stopped.Store(true)
	_ = p.cmd.Process.Kill() // fails if it has gone already
	<-p.exited
}

// stop lets it drain and hand over.
func (p *relayProcess) stop() error {
	select {
	case <-p.exited: // killed, or by itself: onExit knows
		return nil
	default:
		p.stopped.Store(true)
	}
	_ = p.stdin.Close()
	select {
	case <-p.exited:
		if p.err != nil {
			return fmt.Errorf("stop %s: it ended with %w", p.name, p.err)
		}
		return nil
	case <-time.After(15 * time.Second):
		p.kill()
		return fmt.Errorf("stop %s: it still ran after 15 s and was killed", p.name)
	}
}

// relayMain is the main function of the child. It ends when its input does:
// when it is told to, and when its parent has died, however that came about.
func relayMain(args []string) (status int) {
	flags := flag.NewFlagSet(relayCommand, flag.ExitOnError)
	name := flags.String("stage", "", "the schema, and the prefix of all streams")
	_ = flags.Parse(args) // exits
	// A Ctrl-C reaches all processes of the terminal; the parent decides what is to happen.
	signal.Ignore(os.Interrupt, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := runRelay(ctx, *name); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runRelay(ctx context.Context, name string) error {
	pool, err := openPostgres(ctx, name, 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	client, err := openRedis(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	s := &stage{name: name}
	relay, err := newRelay(pool, client, Config{Schema: s.name, Prefix: s.prefix(), Logger: slog.Default()})
	if err != nil {
		return err
	}
	return relay.Run(ctx)
}
