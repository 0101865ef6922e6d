package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
)

func newLocal(t *testing.T, cfg LocalConfig) *Local {
	t.Helper()
	l, err := NewLocal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDispatch(t *testing.T) {
	l := newLocal(t, LocalConfig{})
	var calls notes
	var got []events.Event[orderPlaced]
	var first *Subscription
	for _, name := range []string{"1", "2"} {
		s := Subscribe(l, func(ctx context.Context, e events.Event[orderPlaced]) error {
			calls.add(name + " " + e.AggregateID)
			got = append(got, e)
			first.Cancel() // of the Dispatches to come
			return nil
		})
		if first == nil {
			first = s
		}
	}
	ctx := events.ContextWithCorrelation(t.Context(), "request-7")
	before := time.Now().Truncate(time.Millisecond)
	for _, id := range []string{"a", "b"} {
		if err := Dispatch(ctx, l, orderPlaced{id, 7}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Dispatch(ctx, l, mailSent{"nobody's"}); err != nil {
		t.Fatal(err)
	}
	calls.want(t, "1 a", "2 a", "2 b")
	for i, e := range got {
		if e.EventType != "order.placed" || e.SchemaVersion != 2 || e.Data.Cents != 7 || e.CorrelationID != "request-7" ||
			e.EventID.Version() != 7 || e.Timestamp.Before(before) || e.Timestamp.After(time.Now()) || e.Timestamp.Location() != time.UTC {
			t.Fatalf("%d: %+v", i, e)
		}
	}
	if got[0].EventID != got[1].EventID || got[0].EventID == got[2].EventID {
		t.Fatal("an event has one id, and no other has it")
	}
	infos := l.Subscriptions()
	if len(infos) != 1 || infos[0].String() != "local bus.TestDispatch.func1 of order.placed v2" {
		t.Fatal(infos)
	}
}

func TestDispatchErrorsAndPanics(t *testing.T) {
	l := newLocal(t, LocalConfig{})
	out, boom := errors.New("out of stock"), errors.New("boom")
	var calls notes
	var ids []uuid.UUID
	for _, end := range []func() error{
		func() error { return out }, func() error { panic(boom) }, func() error { return nil }, func() error { panic(nil) },
	} {
		Subscribe(l, func(_ context.Context, e events.Event[orderPlaced]) error {
			calls.add("called")
			ids = append(ids, e.EventID)
			return end()
		})
	}
	err := Dispatch(t.Context(), l, order(1))
	says(t, err, out, "local handler bus.TestDispatchErrorsAndPanics", "order.placed", ids[0].String(), "panicked: boom")
	says(t, err, boom)
	var h *HandlerError
	var p *PanicError
	if !errors.As(err, &h) || h.Kind != KindLocal || h.EventID != ids[0] || !errors.As(err, &p) || len(p.Stack) == 0 || p.EventID != ids[0] {
		t.Fatalf("%+v", err)
	}
	calls.want(t, "called", "called", "called", "called")
	if ids[3] != ids[0] {
		t.Fatal("after a panic the event has another id")
	}

	// Goexit goes on, and nothing else does.
	Subscribe(l, func(context.Context, events.Event[mailSent]) error { runtime.Goexit(); return nil })
	Subscribe(l, func(context.Context, events.Event[mailSent]) error { t.Error("called"); return nil })
	var exited sync.WaitGroup
	exited.Go(func() {
		_ = Dispatch(t.Context(), l, mailSent{"1"})
		t.Error("Dispatch returned")
	})
	exited.Wait()
}

// kind is an event type for each size of N.
type kind[N any] struct{ Size N }

func (k kind[N]) EventType() string { return fmt.Sprintf("kind.n%d", reflect.TypeFor[N]().Size()) }
func (kind[N]) SchemaVersion() int  { return 1 }
func (kind[N]) AggregateID() string { return "" } // passes: nothing orders it

func tryKind[N any](t *testing.T, l *Local, calls *notes) {
	Subscribe(l, func(_ context.Context, e events.Event[kind[N]]) error { calls.add(e.EventType); return nil })
	if err := Dispatch(t.Context(), l, kind[N]{}); err != nil {
		t.Fatal(err)
	}
}

// More types than are compared one by one.
func TestDispatchManyTypes(t *testing.T) {
	l := newLocal(t, LocalConfig{})
	var calls notes
	tryKind[[1]byte](t, l, &calls)
	tryKind[[2]byte](t, l, &calls)
	tryKind[[3]byte](t, l, &calls)
	tryKind[[4]byte](t, l, &calls)
	tryKind[[5]byte](t, l, &calls)
	tryKind[[6]byte](t, l, &calls)
	tryKind[[7]byte](t, l, &calls)
	tryKind[[8]byte](t, l, &calls)
	tryKind[[9]byte](t, l, &calls)
	tryKind[[10]byte](t, l, &calls)
	if err := Dispatch(t.Context(), l, kind[[1]byte]{}); err != nil {
		t.Fatal(err)
	}
	calls.want(t, "kind.n1", "kind.n2", "kind.n3", "kind.n4", "kind.n5", "kind.n6", "kind.n7", "kind.n8", "kind.n9", "kind.n10", "kind.n1")
	if err := Dispatch(t.Context(), l, kind[[11]byte]{}); err != nil {
		t.Fatal(err)
	}
}

func TestDispatchAllocatesNothing(t *testing.T) {
	l := newLocal(t, LocalConfig{})
	for range 3 {
		Subscribe(l, func(context.Context, events.Event[orderPlaced]) error { return nil })
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { _ = Dispatch(ctx, l, orderPlaced{"1", 100}) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestLocalWiring(t *testing.T) {
	l := newLocal(t, LocalConfig{})
	refused := func(subscribe func()) (err error) {
		defer func() { err, _ = recover().(error) }()
		subscribe()
		return nil
	}
	says(t, refused(func() { Subscribe[mailSent](nil, nil) }), ErrWiring, "bus.NewLocal", "handler is nil", "bus.mailSent")
	says(t, refused(func() { Subscribe[mailSent](new(Local), nil) }), ErrWiring, "bus.NewLocal")
	says(t, refused(func() { Subscribe(l, func(context.Context, events.Event[*mailSent]) error { return nil }) }), ErrWiring, "it is a pointer")
	Subscribe(l, func(context.Context, events.Event[orderPlaced]) error { return nil })
	says(t, refused(func() { Subscribe(l, func(context.Context, events.Event[orderPlacedToo]) error { return nil }) }), ErrWiring, "is already the Go type")
	if len(l.Subscriptions()) != 1 || (*Local)(nil).Subscriptions() != nil {
		t.Fatal(l.Subscriptions())
	}
	says(t, Dispatch(t.Context(), l, &mailSent{}), ErrWiring, "it is a pointer", "dispatch the value")
	says(t, Dispatch[events.Payload](t.Context(), l, mailSent{}), ErrWiring, "it is an interface")
	says(t, Dispatch(t.Context(), nil, mailSent{}), nil, "bus.NewLocal")
	says(t, Dispatch(t.Context(), new(Local), mailSent{}), nil, "bus.NewLocal")
	says(t, Dispatch(nil, l, mailSent{}), nil, "ctx is nil") //lint:ignore SA1012 that is the test
	_, err := NewLocal(LocalConfig{Middlewares: []Middleware{nil}})
	says(t, err, ErrInvalidConfig, "Config.Middlewares[0] is nil")
	broken := newLocal(t, LocalConfig{Middlewares: []Middleware{func(Next) Next { return nil }}})
	says(t, refused(func() { Subscribe(broken, func(context.Context, events.Event[orderPlaced]) error { return nil }) }), ErrWiring, "returned nil")
}

func TestLocalMiddlewares(t *testing.T) {
	var calls notes
	foreign := false
	l := newLocal(t, LocalConfig{Middlewares: []Middleware{noted(&calls, "m"), func(next Next) Next {
		return func(ctx context.Context, d *Delivery) error {
			if foreign {
				d = &Delivery{}
			}
			return next(ctx, d)
		}
	}}})
	Subscribe(l, listedAfter)
	if err := Dispatch(t.Context(), l, stockReserved{"1"}); err != nil {
		t.Fatal(err)
	}
	calls.want(t, "m > local bus.listedAfter 1", "m <")
	foreign = true
	says(t, Dispatch(t.Context(), l, stockReserved{"1"}), errForeignDelivery)
}
