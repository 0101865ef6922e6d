package workload

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/outbox"
)

// Arrivals is a publisher that notes when each event reached it first.
type Arrivals struct {
	mu   sync.Mutex
	at   map[uuid.UUID]time.Time
	some chan struct{} // signalled at every arrival
}

// NewArrivals waits for events.
func NewArrivals() *Arrivals {
	return &Arrivals{at: map[uuid.UUID]time.Time{}, some: make(chan struct{}, 1)}
}

func (a *Arrivals) arrived(id uuid.UUID) {
	now := time.Now()
	a.mu.Lock()
	if _, ok := a.at[id]; !ok {
		a.at[id] = now
	}
	a.mu.Unlock()
	select {
	case a.some <- struct{}{}:
	default:
	}
}

// patience is how long one event is waited for.
const patience = time.Minute

// Of is when the event arrived; it waits for it, a minute at most.
func (a *Arrivals) Of(ctx context.Context, id uuid.UUID) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		a.mu.Lock()
		at, ok := a.at[id]
		a.mu.Unlock()
		if ok {
			return at, nil
		}
		select {
		case <-a.some:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("wait for event %s to be published: %w", id, context.Cause(ctx))
		}
	}
}

// Wait returns when n different events have arrived; it waits for ten minutes at most.
func (a *Arrivals) Wait(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*patience)
	defer cancel()
	for {
		a.mu.Lock()
		have := len(a.at)
		a.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-a.some:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d events to be published, %d have been: %w", n, have, context.Cause(ctx))
		}
	}
}

// PublishBatch accepts everything.
func (a *Arrivals) PublishBatch(_ context.Context, msgs []*outbox.Message, results []outbox.Result) {
	for i, m := range msgs {
		a.arrived(m.EventID)
		results[i].Status = outbox.Done
	}
}

// BatchContract is that of a publisher that never fails.
func (a *Arrivals) BatchContract() outbox.BatchContract {
	return outbox.BatchContract{StopsKeyAtFirstFailure: true}
}

// Publish accepts everything.
func (a *Arrivals) Publish(_ string, msgs ...*message.Message) error {
	for _, m := range msgs {
		id, err := uuid.Parse(m.UUID)
		if err != nil {
			return err
		}
		a.arrived(id)
	}
	return nil
}

// Close does nothing.
func (a *Arrivals) Close() error { return nil }

// Commit appends one event in a transaction of its own, says when the commit was
// answered, and tells the relays of this process.
func Commit(ctx context.Context, pool *pgxpool.Pool, log *outbox.Log, i int) (id uuid.UUID, at time.Time, err error) {
	event := EventOf(i)
	tx, err := pool.Begin(ctx)
	if err != nil {
		return id, at, err
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if err := log.Append(ctx, tx, event); err != nil {
		return id, at, err
	}
	if err := tx.Commit(ctx); err != nil {
		return id, at, err
	}
	at = time.Now()
	log.Wake()
	return event.EventID, at, nil
}

// Latencies commits n events, one every pause, and waits for each: how long after its
// commit it was handed to the publisher. What arrives before its commit was answered
// has waited for nothing.
func (a *Arrivals) Latencies(ctx context.Context, pool *pgxpool.Pool, log *outbox.Log, n int, pause time.Duration) ([]time.Duration, error) {
	var waits []time.Duration
	for i := range n {
		Pause(ctx, pause)
		id, committed, err := Commit(ctx, pool, log, i)
		if err != nil {
			return nil, err
		}
		arrived, err := a.Of(ctx, id)
		if err != nil {
			return nil, err
		}
		waits = append(waits, max(0, arrived.Sub(committed)))
	}
	return waits, nil
}

// Pause sleeps for d, or until ctx is done.
func Pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// OpenXid begins a transaction that has an xid, and leaves it open until the returned
// function is called.
func OpenXid(ctx context.Context, pool *pgxpool.Pool) (end func(), err error) {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, "SELECT pg_current_xact_id()"); err != nil {
		return nil, err
	}
	return endOf(ctx, tx), nil
}

func endOf(ctx context.Context, tx pgx.Tx) func() {
	return func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }
}
