package compare

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

var memory = harness.Comparison{
	Name:  "memory",
	Shows: "resident memory of a process that does nothing but drain: a long backlog of small events, and events of 1 KB to 1 MB mixed",
	Needs: []harness.Server{harness.Postgres},
	Run:   runMemory,
}

func init() { children["memory"] = memoryChild }

func runMemory(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	rows := harness.Pick(e, 2_000_000, 150_000)
	mixed := harness.Pick(e, 8000, 1500)
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	if err := workload.Fill(ctx, e, rows); err != nil {
		return nil, err
	}
	e.Progress.Step("drain of %d events", rows)
	small, err := drainInChild(ctx, e, rows)
	if err != nil {
		return nil, err
	}
	if _, err := e.Pool.Exec(ctx, "TRUNCATE "+e.Table("outbox")); err != nil {
		return nil, err
	}
	bytes, err := fillMixed(ctx, e, mixed)
	if err != nil {
		return nil, err
	}
	e.Progress.Step("drain of %d events of 1 KB to 1 MB", mixed)
	large, err := drainInChild(ctx, e, mixed)
	if err != nil {
		return nil, err
	}
	return &harness.Report{
		Line: harness.NewLine("memory").Figure("ours", small.rate).
			Figure("rss_max_mib", small.max).Figure("level", small.level()).
			Figure("mixed", large.rate).Figure("mixed_mib_per_s", large.rate*float64(bytes)/float64(mixed)/(1<<20)).
			Figure("mixed_rss_max_mib", large.max).Figure("mixed_level", large.level()),
		Bars: []harness.Bar{
			{Figure: "rss_max_mib", Value: small.max, Most: 150, Target: true},
			{Figure: "mixed_rss_max_mib", Value: large.max, Most: 150, Target: true},
			{Figure: "level", Value: small.level(), Most: 1.15},
			{Figure: "mixed_level", Value: large.level(), Most: 1.15},
		},
		Notes: []string{
			fmt.Sprintf("%d events of 600 bytes, then %d of 1 KB to 1 MB (%d MiB in all); VmRSS of the relay's process every 10 ms. level: its largest in the last two fifths of the drain to that of the two before. mixed: events a second.", rows, mixed, bytes>>20),
		},
	}, nil
}

// fillMixed appends n events whose sizes are spread evenly over the orders of magnitude
// from 1 KB to 1 MB, and gives their bytes. They hold random digits, so that the server
// cannot make them small.
func fillMixed(ctx context.Context, e *harness.Env, n int) (bytes int, err error) {
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema, MaxDocumentBytes: 2 << 20})
	if err != nil {
		return 0, err
	}
	random := rand.New(rand.NewPCG(1, 2))
	const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	text := make([]byte, 1<<20)
	for i := range text {
		text[i] = digits[random.IntN(len(digits))]
	}
	for at := 0; at < n; at += 20 {
		e.Progress.Step("filling the log: %d of %d large events", at, n)
		var evs []events.DomainEvent
		for i := at; i < min(at+20, n); i++ {
			size := int(1000 * math.Pow(1000, random.Float64()))
			from := random.IntN(len(text) - size + 1)
			order := workload.OrderOf(i)
			order.Note = string(text[from : from+size])
			event, err := events.New(ctx, order)
			if err != nil {
				return 0, err
			}
			bytes += size
			evs = append(evs, event)
		}
		err := pgx.BeginFunc(ctx, e.Pool, func(tx pgx.Tx) error { return log.Append(ctx, tx, evs...) })
		if err != nil {
			return 0, fmt.Errorf("append large events: %w", err)
		}
	}
	return bytes, workload.Settle(ctx, e, "outbox")
}

// drained is what the child has found: its rate, and its resident memory in MiB.
type drained struct {
	rate        float64
	max         float64
	first, last float64 // largest between a fifth and three fifths of the events, and after
}

func (d drained) level() float64 { return d.last / d.first }

func drainInChild(ctx context.Context, e *harness.Env, rows int) (d drained, err error) {
	cmd, err := child(ctx, e, "memory", "POSTBUS_BENCH_N="+strconv.Itoa(rows))
	if err != nil {
		return d, err
	}
	out, err := cmd.Output()
	if err != nil {
		return d, fmt.Errorf("drain in a process of its own: %w", err)
	}
	if _, err := fmt.Sscan(string(out), &d.rate, &d.max, &d.first, &d.last); err != nil {
		return d, fmt.Errorf("the child wrote %q: %w", out, err)
	}
	return d, nil
}

// memoryChild drains the log and watches its own memory meanwhile.
func memoryChild(ctx context.Context, e *harness.Env, out *bufio.Writer) error {
	rows, err := strconv.Atoi(os.Getenv("POSTBUS_BENCH_N"))
	if err != nil {
		return err
	}
	sink := workload.NewSink(rows)
	var d drained
	watching := workload.Start(ctx, func(ctx context.Context) error {
		for ctx.Err() == nil {
			rss, err := residentMiB()
			if err != nil {
				return err
			}
			switch n := sink.Count(); {
			case n < rows/5: // a heap begins small
			case n < rows*3/5:
				d.first = max(d.first, rss)
			default:
				d.last = max(d.last, rss)
			}
			d.max = max(d.max, rss)
			workload.Pause(ctx, 10*time.Millisecond)
		}
		return nil
	})
	d.rate, err = workload.Drain(ctx, e, sink.Batches(), sink, outbox.RelayConfig{}, 0)
	if watchErr := watching.Stop(); err == nil {
		err = watchErr
	}
	fmt.Fprintln(out, d.rate, d.max, d.first, d.last)
	return err
}

func residentMiB() (float64, error) {
	content, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read this process' memory: %w", err)
	}
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return float64(kib) / 1024, err
		}
	}
	return 0, fmt.Errorf("read this process' memory: /proc/self/status has no VmRSS")
}
