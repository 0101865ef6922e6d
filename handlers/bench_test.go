package handlers_test

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// source delivers b.N messages, up to width at once.
type source struct {
	msgs  chan *message.Message
	width int
}

func (s source) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	slots := make(chan struct{}, s.width)
	go func() {
		defer close(out)
		for {
			select {
			case msg := <-s.msgs:
				slots <- struct{}{}
				msg.SetContext(ctx)
				out <- msg
				go func() { <-msg.Acked(); <-slots }()
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (source) Close() error { return nil }

// One event through the router, with 16 in flight: what it costs without a
// handler, and with the inbox on a Postgres nearby.
func BenchmarkRouter(b *testing.B) {
	for name, add := range map[string]func(*handlers.Router){
		"unknown type": func(r *handlers.Router) {
			handlers.Handle(r, "other", func(context.Context, events.Event[paid]) error { return nil })
		},
		"Handle": func(r *handlers.Router) {
			handlers.Handle(r, "mail", func(context.Context, events.Event[placed]) error { return nil })
		},
		"HandleTx": func(r *handlers.Router) {
			handlers.HandleTx(r, "stock", func(context.Context, pgx.Tx, events.Event[placed]) error { return nil })
		},
	} {
		b.Run(name, func(b *testing.B) {
			pool := testkit.Postgres(b, testkit.PG15, func(c *pgxpool.Config) { c.MaxConns = 16 })
			schema := testkit.Schema(b)
			if err := migrations.Up(b.Context(), pool, schema); err != nil {
				b.Fatal(err)
			}
			s := source{make(chan *message.Message, b.N), 16}
			for i := range b.N {
				s.msgs <- messageOf(b, order(i))
			}
			router, err := handlers.NewRouter(s, handlers.Config{
				Pool: pool, Schema: schema, Poison: handlers.PoisonConfig{Publisher: newBroker(1)},
				Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			})
			if err != nil {
				b.Fatal(err)
			}
			add(router)
			ctx, stop := context.WithCancel(b.Context())
			done := make(chan error, 1)
			b.ReportAllocs()
			b.ResetTimer()
			go func() { done <- router.Run(ctx) }()
			testkit.Eventually(b, soon, func() bool { return router.Stats().Acked == uint64(b.N) })
			b.StopTimer()
			stop()
			if err := <-done; err != nil {
				b.Error(err)
			}
		})
	}
}
