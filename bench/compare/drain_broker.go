package compare

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

func drainTo(b broker, group harness.Group) harness.Comparison {
	return harness.Comparison{
		Name:  "drain." + b.name,
		Shows: "a backlog drained to a real server, beside a hand-written loop without any guarantee",
		Needs: []harness.Server{harness.Postgres, b.server},
		Group: group,
		Run: func(ctx context.Context, e *harness.Env) (report *harness.Report, err error) {
			err = b.on(ctx, e, func(s site) error {
				report, err = runDrain(ctx, e, b, s)
				return err
			})
			return report, err
		},
	}
}

func runDrain(ctx context.Context, e *harness.Env, b broker, s site) (*harness.Report, error) {
	rows := b.drain.of(e)
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	if err := workload.Fill(ctx, e, rows); err != nil {
		return nil, err
	}
	o, err := harness.Contest{
		Rounds: rounds, Rows: rows,
		Ours: harness.Runner{Name: "ours", Run: func(ctx context.Context, rows int) (float64, error) {
			if err := s.empty(ctx); err != nil {
				return 0, err
			}
			publisher, err := s.publisher()
			if err != nil {
				return 0, err
			}
			defer publisher.Close()
			sink := workload.NewSink(rows)
			rate, err := workload.Drain(ctx, e, toSite{publisher, s.topic(), sink}, sink, outbox.RelayConfig{}, 0)
			if err != nil {
				return 0, err
			}
			return rate, holds(ctx, s, rows)
		}},
		Limit: harness.Runner{Name: "loop", Run: func(ctx context.Context, rows int) (float64, error) {
			if err := s.empty(ctx); err != nil {
				return 0, err
			}
			rate, err := s.rawDrain(ctx, e, rows)
			if err != nil {
				return 0, err
			}
			return rate, holds(ctx, s, rows)
		}},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	return &harness.Report{
		Line: o.Line("drain."+b.name).Figure("cpu_us", o.CPU(harness.Ours)).Figure("cpu_us_limit", o.CPU(harness.Limit)),
		Bars: []harness.Bar{o.Bar(harness.Limit, 0.8)},
		Notes: []string{
			fmt.Sprintf("limit: a streaming SELECT, read ahead, and %s; no cursor, no lanes. cpu_us: of this process, a row; the servers run beside it.", b.drainNote),
		},
	}, nil
}

// toSite is an adapter's publisher, with a topic of the bench's own instead of the
// event's, and a count of what was accepted.
type toSite struct {
	ourPublisher
	topic string
	sink  *workload.Sink
}

func (s toSite) PublishBatch(ctx context.Context, msgs []*outbox.Message, results []outbox.Result) {
	for _, m := range msgs {
		m.Topic = s.topic
	}
	s.ourPublisher.PublishBatch(ctx, msgs, results)
	done := 0
	for i := range results {
		if results[i].Status == outbox.Done {
			done++
		}
	}
	s.sink.Arrive(done)
}

var _ outbox.BatchPublisher = toSite{}
var _ message.Publisher = toSite{}
