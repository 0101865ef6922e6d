package workload

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/outbox"
)

// Warnings has adapters say what goes wrong, which in a bench nothing should.
var Warnings = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

// Quiet keeps the relays' own words out of the bench's: warnings only.
var Quiet = slog.New(slog.DiscardHandler)

var relays atomic.Int64

// FreshName is the name of a relay that has never run.
func FreshName() string { return fmt.Sprintf("bench-%d", relays.Add(1)) }

// Drain runs a relay, of a name that has never run unless cfg has one, until the sink
// has what it waits for, or for at most atMost (0: without bound). It gives the rate
// from the start of Run to then: taking the lease and the first round included.
func Drain(ctx context.Context, e *harness.Env, publisher message.Publisher, sink *Sink, cfg outbox.RelayConfig, atMost time.Duration) (float64, error) {
	cfg.Schema = e.Schema
	if cfg.Name == "" {
		cfg.Name = FreshName()
	}
	if cfg.Logger == nil {
		cfg.Logger = Quiet
	}
	relay, err := outbox.NewRelay(e.Pool, publisher, cfg)
	if err != nil {
		return 0, err
	}
	return Clock(ctx, sink, atMost, relay.Run)
}

// Clock runs a program until the sink is done, and gives the rate of what arrived.
func Clock(ctx context.Context, sink *Sink, atMost time.Duration, run func(context.Context) error) (float64, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var late <-chan time.Time
	if atMost > 0 {
		late = time.After(atMost)
	}
	ended := make(chan error, 1)
	began := time.Now()
	go func() { ended <- run(ctx) }()
	select {
	case <-sink.Done():
	case <-late:
	case <-ctx.Done():
	case err := <-ended:
		return 0, fmt.Errorf("it ended before its work was done: %w", err)
	}
	took, n := time.Since(began), sink.Count()
	stop()
	if err := <-ended; err != nil {
		return 0, err
	}
	return harness.PerSecond(n, took), nil
}
