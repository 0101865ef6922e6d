package compare

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

var fanout = harness.Comparison{
	Name:  "fanout",
	Shows: "8 relays on one log, as 8 processes and in one, beside 1 relay on it",
	Needs: []harness.Server{harness.Postgres},
	Run:   runFanout,
}

func init() { children["fanout"] = fanoutChild }

// manyRelays is how many relays read one log.
const manyRelays = 8

func runFanout(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	rows := harness.Pick(e, 500_000, 60_000)
	turns := harness.Pick(e, rounds, 3)
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	if err := workload.Fill(ctx, e, rows); err != nil {
		return nil, err
	}
	var one, apart, together, evenApart, evenTogether, readers, memory []float64
	connections := 0.0
	for i := range turns {
		e.Progress.Step("round %d of %d: one relay", i+1, turns)
		alone, err := drainTogether(ctx, e, rows, 1, 1)
		if err != nil {
			return nil, err
		}
		e.Progress.Step("round %d of %d: %d relays, a process each", i+1, turns, manyRelays)
		a, err := drainTogether(ctx, e, rows, manyRelays, 1)
		if err != nil {
			return nil, err
		}
		e.Progress.Step("round %d of %d: %d relays in one process", i+1, turns, manyRelays)
		t, err := drainTogether(ctx, e, rows, 1, manyRelays)
		if err != nil {
			return nil, err
		}
		e.Progress.Step("round %d of %d: plain readers", i+1, turns)
		r, err := plainReaders(ctx, e, rows)
		if err != nil {
			return nil, err
		}
		one = append(one, alone.rate)
		apart, evenApart = append(apart, a.rate/alone.rate), append(evenApart, a.even)
		together, evenTogether = append(together, t.rate/alone.rate), append(evenTogether, t.even)
		memory = append(memory, t.rss)
		readers = append(readers, r)
		connections = max(connections, t.connections)
	}
	m := harness.Median
	return &harness.Report{
		Line: harness.NewLine("fanout").Figure("ours", m(one)).
			Figure("apart", m(apart)*m(one)).Figure("ratio_apart", m(apart)).
			Figure("together", m(together)*m(one)).Figure("ratio_together", m(together)).
			Figure("ratio_readers", m(readers)).
			Figure("even_apart", m(evenApart)).Figure("even_together", m(evenTogether)).
			Figure("rss_max_mib", slices.Max(memory)).Figure("connections", connections).
			Text("spread_apart", harness.SpreadOf(apart).String()).Text("spread_together", harness.SpreadOf(together).String()).
			Text("spread_readers", harness.SpreadOf(readers).String()).Text("rounds", fmt.Sprint(turns)),
		Bars: []harness.Bar{
			{Figure: "ratio_apart", Value: m(apart), Spread: harness.SpreadOf(apart), Least: 1.7},
			{Figure: "ratio_together", Value: m(together), Spread: harness.SpreadOf(together), Least: 3},
			{Figure: "even_apart", Value: m(evenApart), Spread: harness.SpreadOf(evenApart), Least: 0.5},
			{Figure: "even_together", Value: m(evenTogether), Spread: harness.SpreadOf(evenTogether), Least: 0.5},
			{Figure: "rss_max_mib of 8 relays in one process", Value: slices.Max(memory), Most: 300, Target: true},
			{Figure: "connections of 8 relays in one process", Value: connections, Most: 4 * manyRelays},
		},
		Notes: []string{
			"ours: one relay, rows a second; apart and together: 8 relays, rows a second of all, and in units of the one. ratio_readers: the same of 8 plain streaming SELECTs at once. even: the slowest relay's rate to the mean.",
		},
	}, nil
}

// fanned is what the relays of one turn have reached.
type fanned struct {
	rate        float64 // rows a second of all relays, from the start to the last one's end
	even        float64
	rss         float64 // of the largest process
	connections float64 // of the process that had most
}

// drainTogether starts processes with so many relays each, lets them begin at once,
// and waits until all have drained the log.
func drainTogether(ctx context.Context, e *harness.Env, rows, processes, relays int) (f fanned, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type started struct {
		in  io.WriteCloser
		out *bufio.Reader
	}
	var all []started
	for range processes {
		prefix := workload.FreshName()
		cmd, err := child(ctx, e, "fanout", "POSTBUS_BENCH_N="+strconv.Itoa(rows), "POSTBUS_BENCH_RELAYS="+strconv.Itoa(relays), "POSTBUS_BENCH_NAME="+prefix)
		if err != nil {
			return f, err
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			return f, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return f, err
		}
		if err := cmd.Start(); err != nil {
			return f, err
		}
		defer cmd.Wait()
		all = append(all, started{in, bufio.NewReader(out)})
	}
	for _, s := range all {
		if _, err := s.out.ReadString('\n'); err != nil {
			return f, fmt.Errorf("wait for a process to be ready: %w", err)
		}
	}
	began := time.Now()
	for _, s := range all {
		if _, err := fmt.Fprintln(s.in, "go"); err != nil {
			return f, err
		}
	}
	var rates []float64
	for _, s := range all {
		for range relays {
			var rate, rss, connections float64
			if _, err := fmt.Fscan(s.out, &rate, &rss, &connections); err != nil {
				return f, fmt.Errorf("read what a process has found: %w", err)
			}
			rates = append(rates, rate)
			f.rss, f.connections = max(f.rss, rss), max(f.connections, connections)
		}
	}
	f.rate = harness.PerSecond(rows*len(rates), time.Since(began))
	mean := 0.0
	for _, r := range rates {
		mean += r / float64(len(rates))
	}
	f.even = slices.Min(rates) / mean
	return f, nil
}

// fanoutChild has its relays drain the log once it is told to.
func fanoutChild(ctx context.Context, e *harness.Env, out *bufio.Writer) error {
	rows, err := strconv.Atoi(os.Getenv("POSTBUS_BENCH_N"))
	if err != nil {
		return err
	}
	relays, err := strconv.Atoi(os.Getenv("POSTBUS_BENCH_RELAYS"))
	if err != nil {
		return err
	}
	pool, err := e.NewPool(ctx, 4*relays)
	if err != nil {
		return err
	}
	defer pool.Close()
	e.Pool = pool
	if err := pool.Ping(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	if err := out.Flush(); err != nil {
		return err
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	rates := make([]float64, relays)
	g, draining := errgroup.WithContext(ctx)
	for i := range relays {
		g.Go(func() (err error) {
			sink := workload.NewSink(rows)
			rates[i], err = workload.Drain(draining, e, sink.Batches(), sink, outbox.RelayConfig{Name: fmt.Sprintf("%s-%d", os.Getenv("POSTBUS_BENCH_NAME"), i)}, 0)
			return err
		})
	}
	var rss, connections float64
	watching := workload.Start(ctx, func(ctx context.Context) error {
		for ctx.Err() == nil {
			now, err := residentMiB()
			if err != nil {
				return err
			}
			rss, connections = max(rss, now), max(connections, float64(pool.Stat().TotalConns()))
			workload.Pause(ctx, 20*time.Millisecond)
		}
		return nil
	})
	err = g.Wait()
	if watchErr := watching.Stop(); err == nil {
		err = watchErr
	}
	for _, rate := range rates {
		fmt.Fprintln(out, rate, rss, connections)
	}
	return err
}

// plainReaders gives the rate of 8 streaming SELECTs at once to that of one.
func plainReaders(ctx context.Context, e *harness.Env, rows int) (float64, error) {
	one, err := limit.Stream(ctx, e.Pool, e.Table("outbox"), rows)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	g, reading := errgroup.WithContext(ctx)
	for range manyRelays {
		g.Go(func() error {
			_, err := limit.Stream(reading, e.Pool, e.Table("outbox"), rows)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return harness.PerSecond(rows*manyRelays, time.Since(began)) / one, nil
}
