package brokertest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
	"github.com/postbus/postbus/outbox"
)

// underRelay: from a transaction in Postgres to the handler.
func underRelay(r *room) (string, error) {
	ctx := context.Background()
	schema := testkit.Schema(r.t)
	pool := testkit.Postgres(r.t, testkit.PG15)
	if err := migrations.Up(ctx, pool, schema); err != nil {
		r.t.Fatal(err)
	}
	topic := r.topic()
	outboxLog, err := outbox.NewLog(outbox.LogConfig{Schema: schema, Topic: func(string) string { return topic }})
	if err != nil {
		r.t.Fatal(err)
	}
	l := newLedger()
	if _, err := r.consume(topic, l.handler(0.05)); err != nil {
		return "", err
	}
	relay, err := outbox.NewRelay(pool, r.publisher(), outbox.RelayConfig{Name: "conformance", Schema: schema, PollInterval: 100 * time.Millisecond, Logger: quiet()})
	if err != nil {
		r.t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(running) }()
	stopped := sync.OnceValue(func() error { stop(); return <-ended })
	defer stopped()

	const keys, each = 20, 10
	sent := map[string]int{}
	for n := 1; n <= each; n++ {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			for k := range keys {
				key := fmt.Sprintf("key-%d", k)
				sent[key] = n
				if err := outboxLog.Append(ctx, tx, events.DomainEvent{
					EventID: events.NewID(), EventType: "conformance.checked", SchemaVersion: 1, AggregateID: key,
					Timestamp: time.Now(), CorrelationID: "conformance", Data: fmt.Appendf(nil, `{"n":%d}`, n),
				}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
		outboxLog.Wake()
	}
	began := time.Now()
	if err := until(2*r.b.Patience, func() bool { return l.done() >= keys*each }, "all events to be handled; %d of %d were", l.done, keys*each); err != nil {
		return "", fmt.Errorf("%w; missing: %d", err, len(l.missing(sent)))
	}
	took := time.Since(began)
	if err := call(stuckAfter, stopped); err != nil {
		return "", fmt.Errorf("stop the relay: %w", err)
	}
	figures := figuresOf("%d events handled %s after the last commit, %d repeats", keys*each, took.Round(time.Millisecond), l.repeated())
	if err := l.order(); err != nil && r.b.Capabilities.OrderPerKey == Yes {
		return figures, err
	}
	return figures, l.strangers()
}
