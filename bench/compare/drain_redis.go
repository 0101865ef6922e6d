package compare

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/broker/redisstream"
	"github.com/postbus/postbus/outbox"
)

var drainRedis = harness.Comparison{
	Name:  "drain.redis",
	Shows: "a backlog drained to a real Redis, beside a hand-written loop without any guarantee",
	Needs: []harness.Server{harness.Postgres, harness.Redis},
	Run:   runDrainRedis,
}

func runDrainRedis(ctx context.Context, e *harness.Env) (*harness.Report, error) {
	rows := harness.Pick(e, 300_000, 50_000)
	options, err := redis.ParseURL(harness.Redis.URL())
	if err != nil {
		return nil, fmt.Errorf("%s is no address of a Redis: %w", harness.Redis, err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	if err := e.Migrate(ctx); err != nil {
		return nil, err
	}
	if err := workload.Fill(ctx, e, rows); err != nil {
		return nil, err
	}
	// The stream is ours alone, and empty before each turn.
	stream := e.Schema
	empty := func() error { return client.Del(context.WithoutCancel(ctx), stream).Err() }
	defer empty()

	o, err := harness.Contest{
		Rounds: rounds, Rows: rows,
		Ours: harness.Runner{Name: "ours", Run: func(ctx context.Context, rows int) (float64, error) {
			if err := empty(); err != nil {
				return 0, err
			}
			publisher, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: client})
			if err != nil {
				return 0, err
			}
			defer publisher.Close()
			sink := workload.NewSink(rows)
			return workload.Drain(ctx, e, toStream{publisher, stream, sink}, sink, outbox.RelayConfig{}, 0)
		}},
		Limit: harness.Runner{Name: "loop", Run: func(ctx context.Context, rows int) (float64, error) {
			if err := empty(); err != nil {
				return 0, err
			}
			rate, err := limit.RedisLoop(ctx, e.Pool, client, e.Table("outbox"), stream, rows)
			if err != nil {
				return 0, err
			}
			if n := client.XLen(ctx, stream).Val(); n != int64(rows) {
				return 0, fmt.Errorf("the loop has written %d entries instead of %d", n, rows)
			}
			return rate, nil
		}},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	return &harness.Report{
		Line: o.Line("drain.redis").Figure("cpu_us", o.CPU(harness.Ours)).Figure("cpu_us_limit", o.CPU(harness.Limit)),
		Bars: []harness.Bar{o.Bar(harness.Limit, 0.8)},
		Notes: []string{
			"limit: a streaming SELECT, read ahead, and go-redis' pipeline of 1,000 XADDs of the same fields; no cursor, no lanes. cpu_us: of this process, a row; Redis and PostgreSQL run beside it.",
		},
	}, nil
}

// toStream is the adapter's publisher, with a stream of the bench's own instead of the
// topic's, and a count of what was accepted.
type toStream struct {
	*redisstream.Publisher
	stream string
	sink   *workload.Sink
}

func (s toStream) PublishBatch(ctx context.Context, msgs []*outbox.Message, results []outbox.Result) {
	for _, m := range msgs {
		m.Topic = s.stream
	}
	s.Publisher.PublishBatch(ctx, msgs, results)
	done := 0
	for i := range results {
		if results[i].Status == outbox.Done {
			done++
		}
	}
	s.sink.Arrive(done)
}

var _ outbox.BatchPublisher = toStream{}
var _ message.Publisher = toStream{}
