package workload

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/outbox"
)

// Running is a program that was started and goes on until it is stopped.
type Running struct {
	stop  context.CancelFunc
	ended chan error
}

// Start runs a program beside what follows.
func Start(ctx context.Context, run func(context.Context) error) *Running {
	ctx, stop := context.WithCancel(ctx)
	r := &Running{stop: stop, ended: make(chan error, 1)}
	go func() { r.ended <- run(ctx) }()
	return r
}

// Stop ends the program and gives its error. It may be called once.
func (r *Running) Stop() error {
	r.stop()
	return <-r.ended
}

// StartRelay runs a relay on pool, and returns when it has a position: from then on
// FromNow leaves nothing out that is committed.
func StartRelay(ctx context.Context, e *harness.Env, pool *pgxpool.Pool, publisher message.Publisher, cfg outbox.RelayConfig) (*Running, error) {
	cfg.Schema, cfg.Logger = e.Schema, Quiet
	if cfg.Name == "" {
		cfg.Name = FreshName()
	}
	relay, err := outbox.NewRelay(pool, publisher, cfg)
	if err != nil {
		return nil, err
	}
	r := Start(ctx, func(ctx context.Context) error {
		if err := relay.Run(ctx); err != nil {
			return fmt.Errorf("the relay has ended: %w", err)
		}
		return nil
	})
	for began := time.Now(); time.Since(began) < patience; Pause(ctx, 20*time.Millisecond) {
		var placed bool
		err := e.Pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+e.Table("relay_link")+" WHERE relay = $1)", cfg.Name).Scan(&placed)
		if err != nil {
			return nil, errors.Join(err, r.Stop())
		}
		if placed {
			return r, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("relay %s has no position after %s", cfg.Name, patience), r.Stop())
}
