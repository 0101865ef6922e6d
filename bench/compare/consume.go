package compare

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/bench/limit"
	"github.com/postbus/postbus/bench/workload"
	"github.com/postbus/postbus/outbox"
)

const (
	consumeKeys     = 1000
	consumeInFlight = 64 // where the handler does nothing
	handlerTakes    = time.Millisecond

	leastOfRaw  = 0.7
	leastOfPool = 0.75
)

func consumeFrom(b broker) harness.Comparison {
	return harness.Comparison{
		Name:  "consume." + b.name,
		Shows: "events of 1,000 keys consumed from one partition or queue of a real server: by a handler that does nothing, beside the raw client carried through the same contract, and by one that takes 1 ms, beside a pool of as many goroutines",
		Needs: []harness.Server{harness.Postgres, b.server},
		Group: harness.Brokers,
		Run: func(ctx context.Context, e *harness.Env) (report *harness.Report, err error) {
			err = b.on(ctx, e, func(s site) error {
				report, err = runConsume(ctx, e, b, s)
				return err
			})
			return report, err
		},
	}
}

func runConsume(ctx context.Context, e *harness.Env, b broker, s site) (*harness.Report, error) {
	all := b.consume.of(e)
	ours := func(inFlight, goroutines int, takes time.Duration) harness.Runner {
		return harness.Runner{Name: "ours", Run: func(ctx context.Context, rows int) (float64, error) {
			if err := fill(ctx, s, rows); err != nil {
				return 0, err
			}
			subscriber, err := s.subscriber(inFlight)
			if err != nil {
				return 0, err
			}
			return consumed(ctx, s, subscriber, rows, goroutines, takes)
		}}
	}
	stock := func(takes time.Duration) harness.Runner {
		return harness.Runner{Name: "stock", Run: func(ctx context.Context, rows int) (float64, error) {
			if err := fill(ctx, s, rows); err != nil {
				return 0, err
			}
			subscriber, err := s.stockSubscriber()
			if err != nil {
				return 0, err
			}
			from, err := subscriber.Subscribe(ctx, s.topic())
			if err != nil {
				return 0, errors.Join(err, subscriber.Close())
			}
			return workload.Consume(ctx, from, subscriber.Close, rows, 1, takes)
		}}
	}
	o, err := harness.Contest{
		Rounds: rounds, Rows: all, SlowRows: min(all, 2000),
		Ours: ours(consumeInFlight, 1, 0),
		Limit: harness.Runner{Name: "raw", Run: func(ctx context.Context, rows int) (float64, error) {
			if err := fill(ctx, s, rows); err != nil {
				return 0, err
			}
			return consumed(ctx, s, &raw{of: s}, rows, 1, 0)
		}},
		Peers: []harness.Runner{stock(0)},
	}.Run(ctx, e)
	if err != nil {
		return nil, err
	}
	report := &harness.Report{
		Line: o.Line("consume."+b.name).Figure("cpu_us", o.CPU(harness.Ours)).Figure("cpu_us_limit", o.CPU(harness.Limit)),
		Bars: []harness.Bar{o.Bar(harness.Limit, leastOfRaw), o.Bar("stock", 1)},
		Notes: []string{
			"The rates count from the first message to the last ack. limit: " + b.consumeNote + ", a message made of each, handed through a channel, its ack waited for, and the same acknowledgements as ours. One goroutine takes the messages and acks them.",
			fmt.Sprintf("pool_N: N goroutines that sleep 1 ms a message, and no broker. Ours has as many, and N messages in flight; asked is %.2f of the pool, as far as %.2f of the limit allows. stock_64: its subscriber, whose messages 64 goroutines wait for.", leastOfPool, leastOfRaw),
		},
	}
	for _, n := range []int{8, 64} {
		e.Progress.Step("handlers of 1 ms, %d in flight", n)
		pool := harness.Contest{
			Rounds: harness.Pick(e, rounds, 3), Rows: min(all, n*harness.Pick(e, 600, 100)), SlowRows: harness.Pick(e, 500, 200),
			Ours: ours(n, n, handlerTakes),
			Limit: harness.Runner{Name: "pool", Run: func(ctx context.Context, rows int) (float64, error) {
				return limit.Lanes(ctx, n, rows, func() { time.Sleep(handlerTakes) })
			}},
		}
		if n == 64 {
			pool.Peers = []harness.Runner{stock(handlerTakes)}
		}
		p, err := pool.Run(ctx, e)
		if err != nil {
			return nil, err
		}
		bar := p.Bar(harness.Limit, math.Min(leastOfPool, leastOfRaw*o.Rate(harness.Limit)/p.Rate(harness.Limit)))
		bar.Figure = fmt.Sprintf("ratio_pool_%d", n)
		report.Bars = append(report.Bars, bar)
		report.Line.Figure(fmt.Sprintf("ours_%d", n), p.Rate(harness.Ours)).Figure(fmt.Sprintf("pool_%d", n), p.Rate(harness.Limit)).
			Figure(bar.Figure, bar.Value)
		if n == 64 {
			report.Line.Figure("stock_64", p.Rate("stock"))
		}
		report.Line.Text(fmt.Sprintf("spread_pool_%d", n), bar.Spread.String()).Figure(fmt.Sprintf("aa_%d", n), p.Ratio(harness.Again))
	}
	return report, nil
}

// fill leaves the site with at least rows messages that nobody has read; with as many
// as that where reading takes them out.
func fill(ctx context.Context, s site, rows int) error {
	n, err := s.held(ctx)
	if err != nil {
		return err
	}
	if n < rows || n > rows && takesOut(s) {
		if err := s.empty(ctx); err != nil {
			return err
		}
		publisher, err := s.publisher()
		if err != nil {
			return err
		}
		defer publisher.Close()
		msgs, results := workload.Messages(s.topic(), consumeKeys, consumeKeys), make([]outbox.Result, publishCall)
		if _, err := workload.Batches(ctx, msgs, rows, publishCall, func(ctx context.Context, msgs []*outbox.Message) error {
			return publishBatch(ctx, publisher, msgs, results)
		}); err != nil {
			return fmt.Errorf("fill %s: %w", s.topic(), err)
		}
		if err := holds(ctx, s, rows); err != nil {
			return err
		}
	}
	return s.unread(ctx)
}

// takesOut: reading takes messages out of a queue, and leaves them in a log.
func takesOut(s site) bool {
	_, queue := s.(interface{ takesOut() })
	return queue
}

// consumed has messages handled, and then makes sure that the server knows of it.
func consumed(ctx context.Context, s site, subscriber message.Subscriber, rows, goroutines int, takes time.Duration) (float64, error) {
	before, err := s.left(ctx)
	if err != nil {
		return 0, errors.Join(err, subscriber.Close())
	}
	from, err := subscriber.Subscribe(ctx, s.topic())
	if err != nil {
		return 0, errors.Join(err, subscriber.Close())
	}
	rate, err := workload.Consume(ctx, from, subscriber.Close, rows, goroutines, takes)
	if err != nil {
		return 0, err
	}
	// Fewer than that: there were more than rows, and some more were handled.
	return rate, counted(ctx, s.left, before-rows+s.forgets(), "are not acknowledged")
}

// raw has the limit's loop look like a subscriber.
type raw struct {
	of    site
	stop  context.CancelFunc
	ended chan error
}

func (r *raw) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	ctx, r.stop = context.WithCancel(ctx)
	r.ended = make(chan error, 1)
	out := make(chan *message.Message, consumeInFlight)
	go func() {
		defer close(out)
		r.ended <- r.of.rawConsume(ctx, out)
	}()
	return out, nil
}

func (r *raw) Close() error {
	if r.stop == nil {
		return nil
	}
	r.stop()
	return <-r.ended
}
