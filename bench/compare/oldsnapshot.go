package compare

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/peer"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

var oldSnapshot = harness.Comparison{
	Name:  "oldsnapshot",
	Shows: "one idle REPEATABLE READ session is open while small rounds go on: whether anything grows slower",
	Needs: []harness.Server{harness.Postgres},
	Group: harness.Soaks,
	Run:   runOldSnapshot,
}

// tenths of a soak: what is compared is the last with the first.
const tenths = 10

func runOldSnapshot(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	positions := harness.Pick(e, 300_000, 6_000)
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	log, err := outbox.NewLog(outbox.LogConfig{Schema: e.Schema})
	if err != nil {
		return nil, err
	}
	end, err := idleSession(ctx, e)
	if err != nil {
		return nil, err
	}
	defer end()

	var times workload.Timings
	pool, err := e.NewPool(ctx, 4, times.Trace)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	arrivals := workload.NewArrivals()
	relay, err := workload.StartRelay(ctx, e, pool, arrivals, outbox.RelayConfig{Name: "soak"})
	if err != nil {
		return nil, err
	}
	defer relay.Stop()

	var rates, p99s []float64
	var statements []map[string]time.Duration
	for i := range tenths {
		times.Reset()
		began, rounds := time.Now(), 0
		var waits []time.Duration
		for {
			at, err := latestLink(ctx, e, "soak")
			if err != nil {
				return nil, err
			}
			if at >= positions*(i+1)/tenths {
				break
			}
			e.Progress.Step("%d of %d positions", at, positions)
			// One small round after the other: each event is waited for.
			w, err := arrivals.Latencies(ctx, e.Pool, log, 100, 0)
			if err != nil {
				return nil, err
			}
			waits, rounds = append(waits, w...), rounds+len(w)
		}
		rates = append(rates, harness.PerSecond(rounds, time.Since(began)))
		p99s = append(p99s, harness.Milliseconds(harness.Percentile(waits, 0.99)))
		statements = append(statements, times.Medians())
	}
	first, last := statements[0], statements[tenths-1]
	worst, of := 0.0, ""
	for sql, then := range first {
		if now, ok := last[sql]; ok && float64(now)/float64(then) > worst {
			worst, of = float64(now)/float64(then), sql
		}
	}
	peers, err := peersUnderAnOldSnapshot(ctx, e, harness.Pick(e, 30_000, 600))
	if err != nil {
		return nil, err
	}
	rate, p99 := rates[tenths-1]/rates[0], p99s[tenths-1]/p99s[0]
	return &harness.Report{
		Line: harness.NewLine("oldsnapshot").Figure("ours", harness.Median(rates)).Figure("first", rates[0]).Figure("last", rates[tenths-1]).Figure("level", rate).
			Figure("first_p99_ms", p99s[0]).Figure("last_p99_ms", p99s[tenths-1]).Figure("level_p99", p99).
			Figure("level_statement", worst).Text("positions", fmt.Sprint(positions)).
			Figure("level_watermill_sql", peers["watermill_sql"]).Figure("level_river", peers["river"]),
		Bars: []harness.Bar{
			{Figure: "level", Value: rate, Least: 0.85},
			{Figure: "level_p99", Value: p99, Most: 1.15},
			{Figure: "level_statement", Value: worst, Most: 1.15},
		},
		Notes: []string{
			"ours: rounds of one event a second, one after the other; level: those of the last tenth to the first's; level_p99: the same of the time from commit to publisher; level_statement: the statement whose median time grew most, which is: " + shortSQL(of) + ".",
			"level_watermill_sql, level_river: the same for them over fewer events, each marking rows or offsets as it goes.",
		},
	}, nil
}

// idleSession holds a snapshot open, as an idle report or a pg_dump does.
func idleSession(ctx context.Context, e *harness.Env) (end func(), err error) {
	pool, err := e.NewPool(ctx, 1)
	if err != nil {
		return nil, err
	}
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err == nil {
		_, err = tx.Exec(ctx, "SELECT 1")
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return func() { _ = tx.Rollback(context.WithoutCancel(ctx)); pool.Close() }, nil
}

func latestLink(ctx context.Context, e *harness.Env, relay string) (n int, err error) {
	err = e.Pool.QueryRow(ctx, "SELECT coalesce(max(n), 0) FROM "+e.Table("relay_link")+" WHERE relay = $1", relay).Scan(&n)
	return n, err
}

// peersUnderAnOldSnapshot gives the rate of each peer's last tenth to its first. A
// tenth's clock runs from its first event's arrival to its last one's, so that no
// interval of a poll is in it.
func peersUnderAnOldSnapshot(ctx context.Context, e *harness.Env, events int) (map[string]float64, error) {
	part := events / tenths
	arrived := make(chan struct{}, events)
	levels := map[string]float64{}
	level := func(name string, send func() error) error {
		var rates []float64
		for t := range tenths {
			e.Progress.Step("%s, tenth %d", name, t+1)
			if err := send(); err != nil {
				return err
			}
			var first time.Time
			for i := range part {
				select {
				case <-arrived:
				case <-time.After(time.Minute):
					return fmt.Errorf("%s has delivered %d of %d events and no further one within a minute", name, i, part)
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				if i == 0 {
					first = time.Now()
				}
			}
			rates = append(rates, harness.PerSecond(part-1, time.Since(first)))
		}
		levels[name] = rates[tenths-1] / rates[0]
		return nil
	}
	arrive := func() { arrived <- struct{}{} }

	// Watermill updates its offset after each batch, here of one message.
	forwarding := workload.Start(ctx, func(ctx context.Context) error {
		return peer.RunForwarder(ctx, e, "soak", wsql.DefaultPostgreSQLSchema{SubscribeBatchSize: 1}, telling{arrive})
	})
	err := level("watermill_sql", func() error { return peer.FillForwarder(ctx, e, "soak", part) })
	if err := errors.Join(err, forwarding.Stop()); err != nil {
		return nil, err
	}

	// River updates a job when it is fetched and when it is done.
	pool, err := e.NewPool(ctx, 8)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	river, err := peer.NewWorkingRiver(ctx, e, pool, arrive)
	if err != nil {
		return nil, err
	}
	err = level("river", func() error {
		var orders []workload.Order
		for i := range part {
			orders = append(orders, workload.OrderOf(i))
		}
		return river.InsertMany(ctx, orders)
	})
	return levels, errors.Join(err, river.Stop(ctx))
}

// telling is a publisher that calls a function for each message.
type telling struct{ f func() }

func (t telling) Publish(_ string, msgs ...*message.Message) error {
	for range msgs {
		t.f()
	}
	return nil
}

func (telling) Close() error { return nil }

// shortSQL is a statement's beginning on one line.
func shortSQL(sql string) string {
	s := strings.Join(strings.Fields(sql), " ")
	return s[:min(len(s), 120)]
}
