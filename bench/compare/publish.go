package compare

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

// publishCall is how many messages one call publishes.
const publishCall = 1000

func publishTo(b broker) harness.Comparison {
	return harness.Comparison{
		Name:  "publish." + b.name,
		Shows: "batches of 1,000 events of 600 bytes published to a real server, beside the raw client's own batches",
		Needs: []harness.Server{harness.Postgres, b.server},
		Group: harness.Brokers,
		Run: func(ctx context.Context, e *harness.Env) (report *harness.Report, err error) {
			err = b.on(ctx, e, func(s site) error {
				report, err = runPublish(ctx, e, b, s)
				return err
			})
			return report, err
		},
	}
}

func runPublish(ctx context.Context, e *harness.Env, b broker, s site) (*harness.Report, error) {
	msgs := workload.Messages(s.topic(), workload.Keys, workload.Keys)
	// turn publishes into an empty topic, and counts what is in it.
	turn := func(ctx context.Context, rows int, publish func(context.Context, []*outbox.Message) error) (float64, error) {
		if err := s.empty(ctx); err != nil {
			return 0, err
		}
		rate, err := workload.Batches(ctx, msgs, rows, publishCall, publish)
		if err != nil {
			return 0, err
		}
		return rate, holds(ctx, s, rows)
	}
	ours, err := s.publisher()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	stock, err := s.stockPublisher()
	if err != nil {
		return nil, err
	}
	defer stock.Close()

	o, err := harness.Contest{
		Rounds: rounds, Rows: b.publish.of(e), SlowRows: harness.Pick(e, 2000, 500),
		Ours: harness.Runner{Name: "ours", Run: func(ctx context.Context, rows int) (float64, error) {
			results := make([]outbox.Result, publishCall)
			return turn(ctx, rows, func(ctx context.Context, msgs []*outbox.Message) error {
				return publishBatch(ctx, ours, msgs, results)
			})
		}},
		Limit: harness.Runner{Name: "raw", Run: func(ctx context.Context, rows int) (float64, error) {
			return turn(ctx, rows, s.rawPublish)
		}},
		Peers: []harness.Runner{{Name: "stock", Run: func(ctx context.Context, rows int) (float64, error) {
			return turn(ctx, rows, func(ctx context.Context, msgs []*outbox.Message) error {
				if err := ctx.Err(); err != nil {
					return err // the stock publishers do not ask
				}
				call := make([]*message.Message, len(msgs))
				for i, m := range msgs {
					call[i] = m.Watermill()
				}
				return stock.Publish(s.topic(), call...)
			})
		}}},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	return &harness.Report{
		Line: o.Line("publish."+b.name).Figure("cpu_us", o.CPU(harness.Ours)).Figure("cpu_us_limit", o.CPU(harness.Limit)),
		Bars: []harness.Bar{o.Bar(harness.Limit, 0.85)},
		Notes: []string{
			fmt.Sprintf("limit: %s. stock: its Publish with 1,000 messages a call. cpu_us: of this process, a message.", b.publishNote),
		},
	}, nil
}
