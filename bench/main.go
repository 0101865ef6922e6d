// Bench measures Postbus beside its peers and the limits of the machine.
//
//	make bench                  all comparisons but those below
//	make bench QUICK=1          the same with less work each
//	make bench ONLY=drain.null  one, or several separated by commas
//	make bench-brokers          the adapters on Kafka, RabbitMQ, SQS and Redis
//	make soak                   the soaks
//
// One line a comparison goes to standard output; RESULTS.md is brought up to date.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"golang.org/x/term"

	"github.com/postbus/postbus/bench/compare"
	"github.com/postbus/postbus/bench/harness"
)

func main() {
	if compare.Child() {
		return
	}
	only := flag.String("only", os.Getenv("ONLY"), "names of comparisons, separated by commas")
	quick := flag.Bool("quick", os.Getenv("QUICK") != "" && os.Getenv("QUICK") != "0", "less work each")
	brokers := flag.Bool("brokers", false, "run the brokers' comparisons")
	soak := flag.Bool("soak", false, "run the soaks")
	results := flag.String("results", "RESULTS.md", "file to bring up to date; empty: none")
	profile := flag.String("cpuprofile", os.Getenv("POSTBUS_PROFILE"), "write a CPU profile of the run to this file")
	flag.Parse()

	group := harness.Plain
	switch {
	case *brokers && *soak:
		fmt.Fprintln(os.Stderr, "bench: -brokers and -soak are two groups: give one of them")
		os.Exit(2)
	case *brokers:
		group = harness.Brokers
	case *soak:
		group = harness.Soaks
	}

	// The first Ctrl-C ends the run and drops what it has created; a second one does not wait.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := profiled(*profile, func() error {
		return run(ctx, options{only: *only, quick: *quick, group: group, results: *results})
	})
	switch {
	case ctx.Err() != nil && !errors.Is(err, harness.ErrLeftBehind):
		fmt.Fprintln(os.Stderr, "bench: interrupted; what it had created is removed")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	only    string
	quick   bool
	group   harness.Group
	results string
}

func run(ctx context.Context, o options) error {
	picked, err := harness.Select(compare.All(), o.only, o.group)
	if err != nil {
		return err
	}
	if err := harness.CheckServers(ctx, picked); err != nil {
		return err
	}
	machine, err := harness.DescribeMachine(ctx)
	if err != nil {
		return err
	}
	progress := harness.NewProgress(os.Stderr, term.IsTerminal(int(os.Stderr.Fd())), len(picked))
	for i, c := range picked {
		progress.Begin(c.Name)
		report, err := runOne(ctx, c, i, o.quick, progress)
		progress.Clear()
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		fmt.Println(report.Line)
		for _, b := range report.Bars {
			if !b.Met() {
				fmt.Fprintf(os.Stderr, "  %s: %s %s, asked is %s\n", b.Verdict(), b.Figure, b.Measured(), b.Demand())
			}
		}
		if o.results != "" {
			if err := harness.WriteResults(o.results, c, report, machine, o.quick); err != nil {
				return err
			}
		}
	}
	return nil
}

// runOne gives the comparison a schema, and takes it away whatever happens.
func runOne(ctx context.Context, c harness.Comparison, n int, quick bool, progress *harness.Progress) (_ *harness.Report, err error) {
	e, err := harness.NewEnv(ctx, n, quick, progress)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.Close(ctx)) }()
	return c.Run(ctx, e)
}

// profiled runs f, under a CPU profile if path is not empty.
func profiled(path string, f func() error) error {
	if path == "" {
		return f()
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write a CPU profile: %w", err)
	}
	defer file.Close()
	if err := pprof.StartCPUProfile(file); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return f()
}
