package handlers_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/broker/redisstream"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/testkit"
)

// The whole of it over a real broker: handled, retried, poisoned, a foreign entry
// beside them, replayed; stopped and started in between.
func TestOverRedis(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	client := testkit.Redis(t)
	topic := testkit.Prefix(t) + "order"
	publisher, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: client})
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	subscriber := func(group string) *redisstream.Subscriber {
		s, err := redisstream.NewSubscriber(redisstream.SubscriberConfig{Client: client, Group: group, Consumer: "one", Logger: r.config().Logger})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	var broken atomic.Bool
	broken.Store(true)
	router := func() *handlers.Router {
		cfg := r.config()
		cfg.Poison.Publisher = publisher
		cfg.Topic = func(string) string { return topic }
		router, err := handlers.NewRouter(subscriber("shop"), cfg)
		if err != nil {
			t.Fatal(err)
		}
		handlers.HandleTx(router, "stock.reserve", func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
			if broken.Load() && e.Data.Cents == 3 {
				return errors.New("a bug")
			}
			return r.book("stock.reserve")(ctx, tx, e)
		})
		return router
	}
	first := router()
	stop := r.run(first)
	const n = 10
	for i := range n {
		if err := publisher.Publish(topic, messageOf(t, order(i))); err != nil {
			t.Fatal(err)
		}
		if i == 5 {
			client.XAdd(t.Context(), &redis.XAddArgs{Stream: topic, Values: []string{"foreign", "entry"}})
		}
	}
	testkit.Eventually(t, soon, func() bool { return first.Stats().Acked == n+1 }, "all is settled")
	stop()
	if s := first.Stats(); s.Handled != n-1 || s.Poisoned != 2 || s.Undecodable != 1 {
		t.Errorf("stats %+v", s)
	}

	broken.Store(false)
	second := router()
	r.run(second)
	replayer, err := handlers.NewReplayer(subscriber("ops"), publisher, handlers.ReplayConfig{
		Idle:   3 * time.Second,
		Filter: func(p handlers.Poisoned) bool { return p.Handler == "stock.reserve" },
	})
	if err != nil {
		t.Fatal(err)
	}
	report, err := replayer.Replay(t.Context(), topic+".poison")
	if want := (handlers.ReplayReport{Seen: 2, Replayed: 1, Kept: 1}); err != nil || report != want {
		t.Errorf("report %+v, want %+v; %v", report, want, err)
	}
	testkit.Eventually(t, soon, func() bool { return second.Stats().Handled == 1 }, "the replay is handled")
	if e := r.effectsOf("stock.reserve"); e != n {
		t.Errorf("%d effects of %d events", e, n)
	}
	// What the first router had settled was acked: nothing came again.
	if got := r.outcomes("stock.reserve", [16]byte{}); slices.Contains(got, handlers.OutcomeDuplicate) {
		t.Errorf("outcomes %v", got)
	}
}
