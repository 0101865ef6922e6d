package compare

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

var wake = harness.Comparison{
	Name:  "wake",
	Shows: "from the answer to a commit until the event is handed to the publisher, in a system that is otherwise idle",
	Needs: []harness.Server{harness.Postgres},
	Run:   runWake,
}

func init() { children["wake"] = wakeChild }

// between commits, so that each finds the relay asleep.
const wakePause = 20 * time.Millisecond

func runWake(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	n := harness.Pick(e, 500, 100)
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema})
	if err != nil {
		return nil, err
	}
	var sent workload.Statements
	pool, err := e.NewPool(ctx, 4, sent.Trace)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	arrivals := workload.NewArrivals()
	relay, err := workload.StartRelay(ctx, e, pool, arrivals, outbox.RelayConfig{})
	if err != nil {
		return nil, err
	}
	defer relay.Stop()

	e.Progress.Step("%d commits in this process", n)
	same, err := arrivals.Latencies(ctx, e.Pool, log, n, wakePause)
	if err != nil {
		return nil, err
	}

	e.Progress.Step("an idle relay")
	idle := harness.Pick(e, 20*time.Second, 6*time.Second)
	workload.Pause(ctx, 5*time.Second) // looks after a commit come closer together, and one round tidies up
	sent.Reset()
	workload.Pause(ctx, idle)
	all, writes, renewals := sent.Count()

	e.Progress.Step("commits in another process, nobody listens")
	polled, err := otherProcess(ctx, e, arrivals, harness.Pick(e, 30, 5), false)
	if err != nil {
		return nil, err
	}
	listener, err := outbox.NewListener(e.Pool.Config().ConnConfig, outbox.ListenerConfig{Schema: e.Schema, Logger: workload.Quiet})
	if err != nil {
		return nil, err
	}
	listening := workload.Start(ctx, listener.Run)
	defer listening.Stop()
	e.Progress.Step("%d commits in another process, with LISTEN", n)
	other, err := otherProcess(ctx, e, arrivals, n, true)
	if err != nil {
		return nil, err
	}

	p := func(ds []time.Duration, of float64) float64 { return harness.Milliseconds(harness.Percentile(ds, of)) }
	perSecond := harness.PerSecond(all, idle)
	return &harness.Report{
		Line: harness.NewLine("wake").Latency("", p(same, 0.5), p(same, 0.99)).
			Latency("other_", p(other, 0.5), p(other, 0.99)).
			Latency("polled_", p(polled, 0.5), p(polled, 0.99)).
			Figure("idle_statements", perSecond).Figure("idle_writes", float64(writes)).Figure("idle_renewals", harness.PerSecond(renewals, idle)).
			Text("commits", fmt.Sprint(n)),
		Bars: []harness.Bar{
			{Figure: "p50_ms, same process", Value: p(same, 0.5), Most: 2, Target: true},
			{Figure: "p99_ms, same process", Value: p(same, 0.99), Most: 50, Target: true},
			{Figure: "p50_ms, other process, LISTEN", Value: p(other, 0.5), Most: 10, Target: true},
			{Figure: "p99_ms, other process, LISTEN", Value: p(other, 0.99), Most: 50, Target: true},
			{Figure: "largest ms, other process, polled", Value: p(polled, 1), Most: 1200, Target: true},
			{Figure: "statements a second of an idle relay", Value: perSecond, Most: 2},
			{Figure: "writes of an idle relay", Value: float64(writes), Most: 0.001},
		},
		Notes: []string{
			"other: commits of another process, told by an outbox.Notifier there and an outbox.Listener here; polled: without them, bounded by RelayConfig.PollInterval (1 s, with a fifth of jitter).",
			"idle_renewals: statements a second that keep the lease, counted in idle_statements and not in idle_writes.",
		},
	}, nil
}

// otherProcess has a child commit n events and tell when, and gives how long each took
// to arrive here. Both processes read the same clock.
func otherProcess(ctx context.Context, e *harness.Env, arrivals *workload.Arrivals, n int, notify bool) ([]time.Duration, error) {
	cmd, err := child(ctx, e, "wake", "POSTBUS_BENCH_N="+strconv.Itoa(n), "POSTBUS_BENCH_NOTIFY="+strconv.FormatBool(notify))
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var waits []time.Duration
	read := bufio.NewReader(out)
	for {
		line, err := read.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		text, nanos, _ := strings.Cut(strings.TrimSpace(line), " ")
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("the child wrote %q: %w", line, err)
		}
		committed, err := strconv.ParseInt(nanos, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("the child wrote %q: %w", line, err)
		}
		arrived, err := arrivals.Of(ctx, id)
		if err != nil {
			return nil, err
		}
		waits = append(waits, max(0, time.Duration(arrived.UnixNano()-committed)))
	}
	return waits, cmd.Wait()
}

// wakeChild commits events, and writes the id of each and the time of its commit.
func wakeChild(ctx context.Context, e *harness.Env, out *bufio.Writer) error {
	n, err := strconv.Atoi(os.Getenv("POSTBUS_BENCH_N"))
	if err != nil {
		return err
	}
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema})
	if err != nil {
		return err
	}
	if os.Getenv("POSTBUS_BENCH_NOTIFY") == "true" {
		notifier, err := outbox.NewNotifier(e.Pool, outbox.NotifierConfig{Schema: e.Schema, Logger: workload.Quiet})
		if err != nil {
			return err
		}
		notifying := workload.Start(ctx, notifier.Run)
		defer notifying.Stop()
		workload.Pause(ctx, 500*time.Millisecond) // until both sides are there
	}
	for i := range n {
		workload.Pause(ctx, wakePause)
		if os.Getenv("POSTBUS_BENCH_NOTIFY") != "true" {
			workload.Pause(ctx, time.Second) // the poll sleeps longer and longer
		}
		id, at, err := workload.Commit(ctx, e.Pool, log, i)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s %d\n", id, at.UnixNano())
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}
