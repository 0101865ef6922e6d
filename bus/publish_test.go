package bus

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

func TestPublishCommits(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		return w.insert(ctx, tx, e.Data.OrderID)
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, order(1), order(2))
	})
	equal(t, w.loggedKeys(), "order.placed 1", "order.placed 2")
	equal(t, w.effects(), "1", "2")
	announced.want(t, "1", "2")
	if n := w.log.appends.Load(); n != 1 {
		t.Fatalf("%d appends for one Publish", n)
	}
	if n := w.log.wakes.Load(); n != 1 {
		t.Fatalf("the relay was woken %d times", n)
	}
}

func TestRollbackAnnouncesNothing(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		return w.insert(ctx, tx, e.Data.OrderID)
	})
	mine := errors.New("mine")
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := w.bus.Publish(ctx, tx, order(1)); err != nil {
			return err
		}
		return mine
	})
	if err != mine {
		t.Fatalf("fn's error came back as %v", err)
	}
	equal(t, w.loggedKeys())
	equal(t, w.effects())
	announced.want(t)
	if n := w.log.wakes.Load(); n != 0 {
		t.Fatalf("the relay was woken %d times", n)
	}
}

func TestEventsComeInAnyForm(t *testing.T) {
	w := newWorld(t)
	var got []events.Event[orderPlaced]
	SubscribeInTx(w.bus, func(_ context.Context, _ pgx.Tx, e events.Event[orderPlaced]) error {
		got = append(got, e)
		return nil
	})
	byPointer := order("pointer")
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx,
			order("value"), &byPointer,
			events.With(order("with"), events.PartitionKey("k")),
			events.With(events.With(&byPointer, events.IdempotentBy("once")), events.Metadata("a", "b")),
			events.Raw(events.DomainEvent{EventType: "order.placed", SchemaVersion: 2, AggregateID: "raw", Data: []byte(`{"order_id":"raw","cents":7}`)}),
		)
	})
	var have []string
	for _, e := range got {
		have = append(have, e.Data.OrderID)
	}
	equal(t, have, "value", "pointer", "with", "pointer", "raw")
	if got[2].PartitionKey != "k" || got[3].IdempotencyKey != "once" || got[3].Metadata["a"] != "b" || got[4].Data.Cents != 7 {
		t.Fatalf("options or data lost: %+v", got)
	}
	equal(t, w.loggedKeys(), "order.placed value", "order.placed pointer", "order.placed with", "order.placed pointer", "order.placed raw")
}

// orderEvent is an aggregate's own interface.
type orderEvent interface {
	events.Payload
	isOrderEvent()
}

func (orderPlaced) isOrderEvent() {}

func TestPublishAll(t *testing.T) {
	w := newWorld(t)
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return PublishAll(ctx, w.bus, tx, []orderEvent{order(1), order(2)})
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return PublishAll(ctx, w.bus, tx, []orderEvent(nil))
	})
	equal(t, w.loggedKeys(), "order.placed 1", "order.placed 2")
}

// What handlers publish stands behind all events of the call that they are in.
func TestOrderInTheLog(t *testing.T) {
	w := newWorld(t)
	var heard notes
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		return w.bus.Publish(ctx, tx, stockReserved(stockReserved{e.Data.OrderID}))
	})
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[stockReserved]) error {
		return w.bus.Publish(ctx, tx, mailSent(e.Data))
	})
	SubscribeAfterCommit(w.bus, func(_ context.Context, e events.Event[mailSent]) error {
		heard.add(e.EventType + " " + e.AggregateID)
		return nil
	})
	SubscribeAfterCommit(w.bus, func(_ context.Context, e events.Event[orderPlaced]) error {
		heard.add(e.EventType + " " + e.AggregateID)
		return nil
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, order(1), order(2))
	})
	equal(t, w.loggedKeys(), "order.placed 1", "order.placed 2", "stock.reserved 1", "mail.sent 1", "stock.reserved 2", "mail.sent 2")
	heard.want(t, "order.placed 1", "order.placed 2", "mail.sent 1", "mail.sent 2")
}

func TestCorrelationAndCausation(t *testing.T) {
	w := newWorld(t)
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		return w.bus.Publish(ctx, tx, stockReserved{e.Data.OrderID})
	})
	SubscribeAfterCommit(w.bus, func(ctx context.Context, e events.Event[stockReserved]) error {
		return InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, mailSent(e.Data))
		})
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(events.ContextWithCorrelation(ctx, "request-7"), tx, order(1))
	})
	log := w.logged()
	if len(log) != 3 {
		t.Fatalf("log: %v", w.loggedKeys())
	}
	for i, e := range log {
		if e.CorrelationID != "request-7" {
			t.Errorf("%s is correlated with %q", e.EventType, e.CorrelationID)
		}
		if i > 0 && e.CausationID != log[i-1].EventID.String() {
			t.Errorf("%s is caused by %q, not by %s", e.EventType, e.CausationID, log[i-1].EventType)
		}
	}
}

// All faults come together and nothing is written, so that the transaction would
// still work; but it is doomed.
func TestRefusedBeforeAnythingIsWritten(t *testing.T) {
	w := newWorld(t)
	SubscribeInTx(w.bus, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { return nil })
	type unencodable struct {
		orderPlaced
		C chan int
	}
	w.log.appends.Store(0)
	var published error
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		published = w.bus.Publish(ctx, tx,
			order(1), order(""), (*orderPlaced)(nil), nil,
			unencodable{},
			events.Raw(events.DomainEvent{EventType: "order.placed", SchemaVersion: 2, AggregateID: "1", Data: []byte(`{"order_id":7}`)}),
		)
		return nil
	})
	says(t, published, events.ErrInvalidEvent, "aggregate_id", "nil pointer", "there is none", "unencodable", "order_id cannot go into")
	says(t, err, ErrDoomed)
	if n := w.log.appends.Load(); n != 0 {
		t.Fatalf("%d appends", n)
	}
	equal(t, w.loggedKeys())
}

func TestHandlerErrorRollsBack(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	first, second := errors.New("out of stock"), errors.New("out of money")
	var calls notes
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		calls.add("first " + e.AggregateID)
		return first
	})
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		calls.add("second " + e.AggregateID)
		return second
	})
	err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, order(1), order(2))
	})
	says(t, err, first, "out of stock", "out of money", "order.placed", "bus.TestHandlerErrorRollsBack")
	says(t, err, second)
	var h *HandlerError
	if !errors.As(err, &h) || h.EventType != "order.placed" || h.AfterCommit {
		t.Fatalf("no HandlerError: %v", err)
	}
	calls.want(t, "first 1", "second 1") // both object, and the second event is not handed out
	equal(t, w.loggedKeys())
	announced.want(t)
}

// After a failed statement every other would fail for that reason alone.
func TestAbortedTransactionStopsHandlers(t *testing.T) {
	w := newWorld(t)
	var calls notes
	swallow := false
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		_, err := tx.Exec(ctx, "SELECT 1/0")
		if swallow {
			return nil
		}
		return err
	})
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		calls.add(e.AggregateID)
		return nil
	})
	publish := func(ctx context.Context, tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order(1)) }
	says(t, InTx(t.Context(), w.pool, publish), nil, "division by zero")
	swallow = true
	says(t, InTx(t.Context(), w.pool, publish), errLeftAborted, "savepoint")
	calls.want(t)
}

func TestHandlerPanicIsAnError(t *testing.T) {
	w := newWorld(t)
	cause := errors.New("cause")
	for _, value := range []any{"text", cause, nil} {
		h := func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { panic(value) }
		b, _ := newBus(w.log, Config{})
		SubscribeInTx(b, h)
		err := InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return b.Publish(ctx, tx, order(1))
		})
		var p *PanicError
		if !errors.As(err, &p) || len(p.Stack) == 0 || p.Handler == "" || p.EventID.Version() != 7 {
			t.Fatalf("panic(%v) came as %v", value, err)
		}
		if value == cause && !errors.Is(err, cause) {
			t.Fatalf("%v does not wrap the panic's error", err)
		}
	}
	equal(t, w.loggedKeys())
}

func TestGoexitCommitsNothing(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		runtime.Goexit()
		return nil
	})
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = InTx(t.Context(), w.pool, func(ctx context.Context, tx pgx.Tx) error {
			return w.bus.Publish(ctx, tx, order(1))
		})
		returned = true
	}()
	<-done
	if returned {
		t.Fatal("InTx returned")
	}
	equal(t, w.loggedKeys())
	announced.want(t)
}

func TestTransactionOfSomebodyElse(t *testing.T) {
	w := newWorld(t)
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		return w.bus.Publish(ctx, tx, stockReserved{e.Data.OrderID})
	})
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		return w.bus.Publish(t.Context(), tx, order(1))
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, w.loggedKeys(), "order.placed 1", "stock.reserved 1")

	// An after-commit handler, also of what a handler publishes, cannot be called.
	SubscribeAfterCommit(w.bus, func(context.Context, events.Event[stockReserved]) error { return nil })
	for _, e := range []events.Payload{stockReserved{"2"}, order(2)} {
		err = pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
			return w.bus.Publish(t.Context(), tx, e)
		})
		says(t, err, ErrNotInTx, "stock.reserved", "bus.TestTransactionOfSomebodyElse", "begin the transaction with bus.InTx")
	}
	if len(w.loggedKeys()) != 2 {
		t.Fatal("something was written")
	}
}

// A handler that goes on after a Publish of its own has failed is found out in
// somebody else's transaction too, unless it has undone it.
func TestSwallowedErrorInSomebodyElsesTransaction(t *testing.T) {
	w := newWorld(t)
	inSavepoint := false
	SubscribeInTx(w.bus, func(ctx context.Context, tx pgx.Tx, e events.Event[orderPlaced]) error {
		if inSavepoint {
			_ = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return w.bus.Publish(ctx, tx, order("")) })
		} else {
			_ = w.bus.Publish(ctx, tx, order(""))
		}
		return nil
	})
	publish := func() error {
		return pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
			return w.bus.Publish(t.Context(), tx, order(1))
		})
	}
	says(t, publish(), ErrDoomed, "aggregate_id")
	inSavepoint = true
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	equal(t, w.loggedKeys(), "order.placed 1")
}

// wrapped is a user's own pgx.Tx, for instance for tracing.
type wrapped struct{ pgx.Tx }

func TestWrappedTransactionIsStillFollowed(t *testing.T) {
	w := newWorld(t)
	announced := w.announced()
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		_ = pgx.BeginFunc(ctx, wrapped{tx}, func(tx pgx.Tx) error {
			return errors.Join(w.bus.Publish(ctx, wrapped{tx}, order(1)), errors.New("undo"))
		})
		return w.bus.Publish(ctx, wrapped{tx}, order(2))
	})
	announced.want(t, "2")
	equal(t, w.loggedKeys(), "order.placed 2")
}

func TestMisuseIsOneSentence(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	var after pgx.Tx
	w.inTx(func(_ context.Context, tx pgx.Tx) error { after = tx; return nil })

	says(t, (*EventBus)(nil).Publish(ctx, tx, order(1)), nil, "bus is nil")
	says(t, new(EventBus).Publish(ctx, tx, order(1)), nil, "bus is nil or empty")
	says(t, w.bus.Publish(ctx, nil, order(1)), nil, "tx is nil")
	says(t, w.bus.Publish(ctx, (*wrapped)(nil), order(1)), nil, "tx is nil")
	says(t, w.bus.Publish(nil, tx, order(1)), nil, "ctx is nil") //lint:ignore SA1012 that is the test
	says(t, w.bus.Publish(ctx, after, order(1)), nil, "order.placed", "has returned")
	says(t, PublishAll(ctx, nil, tx, []orderPlaced{order(1)}), nil, "bus is nil")
	says(t, InTx(ctx, w.pool, func(ctx context.Context, _ pgx.Tx) error {
		_ = w.bus.Publish(ctx, nil, order(1)) // dropped
		return nil
	}), ErrDoomed, "tx is nil")
	if err := w.bus.Publish(ctx, tx); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	says(t, w.bus.Publish(ctx, tx, order(1)), pgx.ErrTxClosed, "order.placed", "committed or rolled back")

	says(t, InTx(nil, w.pool, nil), nil, "ctx is nil") //lint:ignore SA1012 that is the test
	says(t, InTx(ctx, nil, nil, RetryConflicts(0)), ErrInvalidConfig, "db is nil", "fn is nil", "RetryConflicts(0)")
	says(t, InTx(ctx, (*pgx.Conn)(nil), func(context.Context, pgx.Tx) error { return nil }), ErrInvalidConfig, "db is nil")

	_, err = New(nil, Config{MaxDepth: -1, AfterCommitTimeout: -2})
	says(t, err, ErrInvalidConfig, "log is nil", "MaxDepth is -1", "NoTimeout")
}

// Events of unknown types, and other versions than the handlers', are nobody's
// here and go to the log all the same.
func TestOtherVersionIsNotHandled(t *testing.T) {
	w := newWorld(t)
	SubscribeInTx(w.bus, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error {
		return errors.New("called")
	})
	w.inTx(func(ctx context.Context, tx pgx.Tx) error {
		return w.bus.Publish(ctx, tx, events.Raw(events.DomainEvent{EventType: "order.placed", SchemaVersion: 1, AggregateID: "1", Data: []byte(`{}`)}))
	})
	if !slices.Equal(w.loggedKeys(), []string{"order.placed 1"}) {
		t.Fatal(w.loggedKeys())
	}
}
