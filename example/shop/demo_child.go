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

// The hidden subcommands by which this program runs itself once more, as one thing
// and nothing else: processes that can be killed.
const (
	relayCommand  = "relay"
	reportCommand = "report"
)

var commands = map[string]func(ctx context.Context, s *stage) error{relayCommand: runRelay, reportCommand: runReport}

// child is one of them.
type child struct {
	name    string
	cmd     *exec.Cmd
	stdin   io.Closer
	stopped atomic.Bool   // we have asked it to end
	exited  chan struct{} // closed when it has
	err     error         // how; read after exited is closed
}

// startChild starts one. onExit is told if it ends without being asked to.
func startChild(command, name string, stage *stage, stderr io.Writer, onExit func(error)) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &child{name: name, cmd: exec.Command(self, command, "-stage", stage.name, "-broker", stage.kind), exited: make(chan struct{})}
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

func (p *child) pid() int { return p.cmd.Process.Pid }

// kill is kill -9: the process executes no further instruction.
func (p *child) kill() {
	p.stopped.Store(true)
	_ = p.cmd.Process.Kill() // fails if it has gone already
	<-p.exited
}

// stop lets it drain and hand over.
func (p *child) stop() error {
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

// childMain is the main function of the child. It ends when its input does:
// when it is told to, and when its parent has died, however that came about.
func childMain(command string, args []string) (status int) {
	flags := flag.NewFlagSet(command, flag.ExitOnError)
	name := flags.String("stage", "", "the schema, and the prefix of all topics")
	broker := flags.String("broker", "", "what carries the events")
	_ = flags.Parse(args) // exits
	// A Ctrl-C reaches all processes of the terminal; the parent decides what is to happen.
	signal.Ignore(os.Interrupt, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := commands[command](ctx, &stage{name: *name, kind: *broker}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runRelay(ctx context.Context, s *stage) error {
	pool, err := openPostgres(ctx, s.name, 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	broker, err := openBroker(ctx, s.kind, s.prefix())
	if err != nil {
		return err
	}
	defer broker.close()
	publisher, err := broker.Publisher()
	if err != nil {
		return err
	}
	defer publisher.Close()
	relay, err := newRelay(pool, publisher, Config{Schema: s.name, Prefix: s.prefix(), Logger: slog.Default()})
	if err != nil {
		return err
	}
	return relay.Run(ctx)
}

func runReport(ctx context.Context, s *stage) error {
	pool, err := openPostgres(ctx, s.name, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	reports, err := newReport(pool, Config{Schema: s.name, Prefix: s.prefix(), Logger: slog.Default()})
	if err != nil {
		return err
	}
	return reports.Run(ctx)
}
