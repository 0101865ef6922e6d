package compare

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

var retention = harness.Comparison{
	Name:  "retention",
	Shows: "5,000 events a second appended and published while retention keeps the last 30 s: without retention, with it, and with it beside an idle REPEATABLE READ session",
	Needs: []harness.Server{harness.Postgres},
	Group: harness.Soaks,
	Run:   runRetention,
}

const (
	soakRate    = 5000 // events appended a second
	soakWriters = 10
	soakCall    = 50 // events a transaction
)

func runRetention(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	phase := soakPhase{length: harness.Pick(e, 5*time.Minute, 20*time.Second), keep: harness.Pick(e, 30*time.Second, 4*time.Second)}
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	without, err := phase.run(ctx, e, "no retention", false, false)
	if err != nil {
		return nil, err
	}
	with, err := phase.run(ctx, e, "retention", true, false)
	if err != nil {
		return nil, err
	}
	beside, err := phase.run(ctx, e, "retention beside an old snapshot", true, true)
	if err != nil {
		return nil, err
	}
	p99 := with.p99 / without.p99
	return &harness.Report{
		Line: harness.NewLine("retention").Figure("ours", with.rate).
			Figure("size_level", with.sizeLevel).Figure("size_mib", with.size).Figure("p99_ms", with.p99).Figure("ratio_p99", p99).Figure("level", with.rateLevel).
			Figure("wal_bytes", with.wal).Figure("wal_bytes_without", without.wal).
			Figure("snapshot_p99_ms", beside.p99).Figure("snapshot_ratio_p99", beside.p99/without.p99).Figure("snapshot_size_mib", beside.size).Figure("snapshot_level", beside.rateLevel).
			Figure("p99_ms_without", without.p99).Figure("size_mib_without", without.size),
		Bars: []harness.Bar{
			{Figure: "size_level", Value: with.sizeLevel, Most: 1.1},
			{Figure: "ratio_p99", Value: p99, Most: 1.2},
			{Figure: "snapshot_ratio_p99", Value: beside.p99 / without.p99, Most: 1.2},
			{Figure: "level", Value: with.rateLevel, Least: 0.95, Most: 1.05},
			{Figure: "snapshot_level", Value: beside.rateLevel, Least: 0.95, Most: 1.05},
		},
		Notes: []string{
			fmt.Sprintf("%s a phase, keep %s, %d writers, %d events a transaction. ours: events a second through the relay; level: those of the last fifth of the time to those of the fifth after the first two. size_level: table and indexes at their largest in the last fifth, to their largest in the two fifths before. p99_ms: of an append with its commit. wal_bytes: of the whole server, an event.", phase.length, phase.keep, soakWriters, soakCall),
			"The ways that were not chosen (partitions, a ring of tables) are measured beside DELETE by TestMeasureRetention of package outbox.",
		},
	}, nil
}

type soakPhase struct{ length, keep time.Duration }

// soaked is what one phase has found.
type soaked struct {
	rate, rateLevel float64
	size, sizeLevel float64 // MiB at the end
	p99             float64 // of appends, ms
	wal             float64 // bytes an event
}

func (p soakPhase) run(ctx context.Context, e *harness.Env, name string, removing, snapshot bool) (s soaked, err error) {
	if _, err := e.Pool.Exec(ctx, "TRUNCATE "+e.Table("outbox")); err != nil {
		return s, err
	}
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema})
	if err != nil {
		return s, err
	}
	sink := workload.NewSink(1 << 40)
	relay, err := workload.StartRelay(ctx, e, e.Pool, sink.Batches(), outbox.RelayConfig{Name: "soak", StartAt: outbox.FromNow})
	if err != nil {
		return s, err
	}
	defer relay.Stop()
	if removing {
		r, err := outbox.NewRetention(e.Pool, outbox.RetentionConfig{Schema: e.Schema, Keep: p.keep, Interval: p.keep / 10, Logger: workload.Quiet})
		if err != nil {
			return s, err
		}
		removal := workload.Start(ctx, r.Run)
		defer removal.Stop()
	}
	if snapshot {
		end, err := idleSession(ctx, e)
		if err != nil {
			return s, err
		}
		defer end()
	}
	before, err := walPosition(ctx, e)
	if err != nil {
		return s, err
	}
	var mu sync.Mutex
	var waits []time.Duration
	began := time.Now()
	g, appending := errgroup.WithContext(ctx)
	for w := range soakWriters {
		g.Go(func() error {
			every := time.Second * soakWriters * soakCall / soakRate
			for i := 0; ; i++ {
				at := began.Add(every*time.Duration(i) + every*time.Duration(w)/soakWriters)
				if at.Sub(began) > p.length {
					return nil
				}
				workload.Pause(appending, time.Until(at))
				evs := make([]events.DomainEvent, soakCall)
				for j := range evs {
					evs[j] = workload.EventOf((i*soakWriters+w)*soakCall + j)
				}
				start := time.Now()
				err := pgx.BeginFunc(appending, e.Pool, func(tx pgx.Tx) error { return log.Append(appending, tx, evs...) })
				if err != nil {
					return err
				}
				took := time.Since(start)
				log.Wake()
				mu.Lock()
				waits = append(waits, took)
				mu.Unlock()
			}
		})
	}
	var counts, sizes []float64 // by fifth: events published, and the largest size in MiB
	for fifth := range 5 {
		from, largest := sink.Count(), 0.0
		for until := began.Add(p.length * time.Duration(fifth+1) / 5); time.Now().Before(until) && ctx.Err() == nil; {
			workload.Pause(ctx, 500*time.Millisecond)
			e.Progress.Step("%s: %s of %s", name, time.Since(began).Round(time.Second), p.length)
			var bytes float64
			if err := e.Pool.QueryRow(ctx, "SELECT pg_total_relation_size($1::regclass)::float8", e.Table("outbox")).Scan(&bytes); err != nil {
				return s, err
			}
			largest = max(largest, bytes/(1<<20))
		}
		counts, sizes = append(counts, float64(sink.Count()-from)), append(sizes, largest)
	}
	if err := g.Wait(); err != nil {
		return s, err
	}
	after, err := walPosition(ctx, e)
	if err != nil {
		return s, err
	}
	appended := len(waits) * soakCall
	s.rate = harness.PerSecond(sink.Count(), p.length)
	s.rateLevel = counts[4] / counts[2]
	s.size, s.sizeLevel = sizes[4], sizes[4]/slices.Max(sizes[2:4])
	s.p99 = harness.Milliseconds(harness.Percentile(waits, 0.99))
	s.wal = (after - before) / float64(appended)
	return s, ctx.Err()
}
