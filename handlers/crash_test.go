package handlers_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
	"github.com/postbus/postbus/internal/failpoint"
	"github.com/postbus/postbus/internal/testkit"
)

func init() { testkit.RegisterChild("consumer", consumer) }

// consumer is a process that gets one message, and dies at a failpoint or exits
// once the message is acked.
func consumer(args []string) {
	mode, address, schema, die, id := args[0], args[1], args[2], args[3], args[4]
	document, err := hex.DecodeString(args[5])
	ctx := context.Background()
	pool, err2 := pgxpool.New(ctx, address)
	if err := errors.Join(err, err2); err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	failpoint.Set(func(name string) {
		if name == die {
			fmt.Println("dying at", name)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	effects := pgx.Identifier{schema, "effects"}.Sanitize()
	b := newBroker(1)
	router, err := handlers.NewRouter(b, handlers.Config{
		Pool: pool, Schema: schema, Retry: quick,
		SlowNack: handlers.SlowNackConfig{Initial: time.Millisecond},
		Poison:   handlers.PoisonConfig{Publisher: durable{pool, effects}},
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	insert := "INSERT INTO " + effects + " VALUES ('" + mode + "', $1::uuid)"
	switch mode {
	case "tx":
		handlers.HandleTx(router, mode, func(ctx context.Context, tx pgx.Tx, e events.Event[placed]) error {
			_, err := tx.Exec(ctx, insert, e.EventID)
			return err
		})
	case "plain":
		handlers.Handle(router, mode, func(ctx context.Context, e events.Event[placed]) error {
			_, err := pool.Exec(ctx, insert, e.EventID)
			return err
		})
	case "failing":
		handlers.HandleTx(router, mode, func(context.Context, pgx.Tx, events.Event[placed]) error {
			return errors.New("no")
		})
	}
	_ = b.Publish("order", message.NewMessage(id, document))
	ctx, stop := context.WithCancel(ctx)
	go func() {
		testkit.Eventually(&testing.T{}, time.Minute, func() bool { return b.acked("order") == 1 })
		stop()
	}()
	if err := router.Run(ctx); err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
}

// durable is a poison queue that survives the process.
type durable struct {
	pool    *pgxpool.Pool
	effects string
}

func (d durable) Publish(_ string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		if _, err := d.pool.Exec(msg.Context(), "INSERT INTO "+d.effects+" VALUES ('queue', $1::uuid)", msg.Metadata[handlers.HeaderPoisonEventID]); err != nil {
			return err
		}
	}
	return nil
}

func (d durable) Close() error { return nil }

type crash struct {
	mode, point string
	of          string // the effects that are counted
	want        int
	state       string // in the inbox, at the end
}

func TestKilledAtEveryFailpoint(t *testing.T) {
	t.Parallel()
	cases := []crash{
		{"tx", "insert.before", "tx", 1, "handled"},
		{"tx", "insert.after", "tx", 1, "handled"},
		{"tx", "effects.after", "tx", 1, "handled"},
		{"tx", "commit.after", "tx", 1, "handled"},
		{"tx", "ack.before", "tx", 1, "handled"},
		{"plain", "effects.after", "plain", 2, "handled"}, // at least once: the price of effects elsewhere
		{"plain", "commit.after", "plain", 1, "handled"},
		{"plain", "ack.before", "plain", 1, "handled"},
		{"failing", "insert.after", "queue", 1, "poisoned"},
		{"failing", "poison.before", "queue", 1, "poisoned"},
		{"failing", "poison.after", "queue", 2, "poisoned"}, // two copies of one poisoning
		{"failing", "ack.before", "queue", 1, "poisoned"},
	}
	for _, point := range handlers.Failpoints {
		if !slices.ContainsFunc(cases, func(c crash) bool { return c.point == point }) {
			t.Errorf("nobody dies at %s", point)
		}
	}
	for _, c := range cases {
		t.Run(c.mode+" "+c.point, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			msg := messageOf(t, order(1))
			args := []string{c.mode, testkit.AddressOf(r.own), r.schema, c.point, msg.UUID, hex.EncodeToString(msg.Payload)}
			child := testkit.StartChild(t, "consumer", args...)
			if err := child.Wait(time.Minute); err == nil {
				t.Fatalf("the child has survived %s:\n%s", c.point, child.Output())
			}
			args[3] = "" // what the broker has no ack of, it delivers again
			if err := testkit.StartChild(t, "consumer", args...).Wait(time.Minute); err != nil {
				t.Fatal(err)
			}
			if n := r.effectsOf(c.of); n != c.want {
				t.Errorf("%d times %s, want %d", n, c.of, c.want)
			}
			if s := r.state(c.mode, uuid.MustParse(msg.UUID)); s != c.state {
				t.Errorf("state %q, want %q", s, c.state)
			}
		})
	}
}
