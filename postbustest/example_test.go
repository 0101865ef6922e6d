package postbustest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/bus"
	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
	"github.com/postbus/postbus/postbustest"
)

// Domain code declares the one method that it needs, and imports nothing of ours.
type publisher interface {
	Publish(ctx context.Context, tx pgx.Tx, evs ...OrderPlaced) error
}

type orders struct{ publisher publisher }

func (o orders) Place(ctx context.Context, tx pgx.Tx, id string, cents int64) error {
	return o.publisher.Publish(ctx, tx, OrderPlaced{OrderID: id, Cents: cents})
}

// A test of domain code that needs no database.
func ExampleBus() {
	t, done := thisTest() // in yours: func TestPlace(t *testing.T)
	defer done()

	var told postbustest.Bus[OrderPlaced]
	shop := orders{publisher: &told}
	if err := shop.Place(context.Background(), nil, "o-1", 4200); err != nil {
		t.Fatal(err)
	}
	e := postbustest.RequirePublished[OrderPlaced](t, &told, postbustest.Times(1))[0]
	fmt.Println(e.EventType, e.Key(), e.Data.Cents)

	told.FailWith(errors.New("the log is out of reach"))
	fmt.Println(shop.Place(context.Background(), nil, "o-2", 100))
	// Output:
	// order.placed o-1 4200
	// the log is out of reach
}

// A transaction is looked into before its commit.
func ExampleRequirePublished() {
	t, done := thisTest()
	defer done()
	ctx := context.Background()
	pool := testkit.Postgres(t, testkit.PG15) // in yours: pgxpool.New
	schema := postbustest.Schema(t, pool)
	eventBus := newBus(t, schema)

	err := bus.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := eventBus.Publish(ctx, tx, OrderPlaced{OrderID: "o-1", Cents: 4200}, OrderCancelled{OrderID: "o-1"}); err != nil {
			return err
		}
		dear := postbustest.Where(func(e events.Event[OrderPlaced]) bool { return e.Data.Cents > 1000 })
		placed := postbustest.RequirePublished[OrderPlaced](t, postbustest.InTx(tx, schema), postbustest.WithKey("o-1"), dear)
		fmt.Println(len(placed), "dear order")
		return errors.New("changed my mind")
	})
	fmt.Println(err)
	postbustest.RequireNothingPublished(t, postbustest.InLog(pool, schema))
	// Output:
	// 1 dear order
	// changed my mind
}

// A relay meets a broker that loses an answer, and one that refuses an event for good.
func ExampleRunToEnd() {
	t, done := thisTest()
	defer done()
	ctx := context.Background()
	pool := testkit.Postgres(t, testkit.PG15)
	schema := postbustest.Schema(t, pool)
	eventBus := newBus(t, schema)
	err := bus.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		return eventBus.Publish(ctx, tx, OrderPlaced{OrderID: "o-1"}, OrderPlaced{OrderID: "o-2"}, OrderCancelled{OrderID: "o-2"})
	})
	if err != nil {
		t.Fatal(err)
	}

	var broker postbustest.Broker
	broker.On(t, postbustest.When{Key: "o-1", Nth: 1}, postbustest.LoseAnswer())
	broker.On(t, postbustest.When{Key: "o-2"}, postbustest.RefuseForGood(errors.New("no such topic")))
	parked := postbustest.RunToEnd(t, pool, &broker, outbox.RelayConfig{Schema: schema})

	twice := postbustest.RequirePublished[OrderPlaced](t, &broker, postbustest.Times(2))
	fmt.Println("a repeat:", twice[0].EventID == twice[1].EventID)
	for _, p := range parked {
		fmt.Println(p.EventType, p.Key, p.State)
	}
	// Output:
	// a repeat: true
	// order.placed o-2 given_up
	// order.cancelled o-2 waiting
}

// A durable handler gets all that was committed, and again and again what it fails at.
func ExampleRunDurablesToEnd() {
	t, done := thisTest()
	defer done()
	ctx := context.Background()
	pool := testkit.Postgres(t, testkit.PG15)
	schema := postbustest.Schema(t, pool)
	log, err := outbox.NewLog(outbox.LogConfig{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	eventBus, err := bus.New(log, bus.Config{Pool: pool, Durable: outbox.DurableConfig{
		Retry:  outbox.RetryConfig{Initial: time.Millisecond, MaxAttempts: 2}, // for tests
		Logger: slog.New(slog.DiscardHandler),
	}})
	if err != nil {
		t.Fatal(err)
	}
	sum := int64(0)
	bus.SubscribeDurable(eventBus, "stock.ledger", bus.FromBeginning, func(ctx context.Context, tx pgx.Tx, e events.Event[OrderPlaced]) error {
		if e.Data.Cents < 0 {
			return errors.New("no such price")
		}
		sum += e.Data.Cents // yours writes through tx
		return nil
	})
	err = bus.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		return eventBus.Publish(ctx, tx, OrderPlaced{OrderID: "o-1", Cents: 4200}, OrderPlaced{OrderID: "o-2", Cents: -1})
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, parked := range postbustest.RunDurablesToEnd(t, pool, eventBus.Durables()) {
		for _, p := range parked {
			fmt.Println(name, p.EventType, p.Key, p.State)
		}
	}
	fmt.Println(sum)
	// Output:
	// stock.ledger order.placed o-2 given_up
	// 4200
}

func newBus(t testing.TB, schema string) *bus.EventBus {
	t.Helper()
	log, err := outbox.NewLog(outbox.LogConfig{Schema: schema})
	if err != nil {
		t.Fatal(err)
	}
	eventBus, err := bus.New(log, bus.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return eventBus
}

// thisTest stands for the *testing.T that an example does not get.
func thisTest() (t testing.TB, done func()) {
	v := &exampleTest{}
	return v, v.end
}

type exampleTest struct{ verdict }

func (*exampleTest) Name() string             { return "TestExample" }
func (*exampleTest) Context() context.Context { return context.Background() }
func (e *exampleTest) Fatalf(format string, args ...any) {
	fmt.Printf(format+"\n", args...) // so that the output is wrong
	e.verdict.Fatalf(format, args...)
}
func (e *exampleTest) Fatal(args ...any) { e.Fatalf("%s", fmt.Sprint(args...)) }
func (e *exampleTest) Errorf(format string, args ...any) {
	fmt.Printf(format+"\n", args...)
}
