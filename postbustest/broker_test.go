package postbustest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
	"github.com/postbus/postbus/postbustest"
)

// messageOf is an event as a relay sends it.
func messageOf(t testing.TB, p events.Payload) *outbox.Message {
	t.Helper()
	e, err := events.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	document, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &outbox.Message{LogID: 7, EventID: e.EventID, EventType: e.EventType, SchemaVersion: e.SchemaVersion,
		Topic: outbox.DefaultTopic(e.EventType), Key: e.Key(), ContentType: "application/json",
		Headers: map[string]string{"traceparent": "00-1"}, Source: "source/1", Payload: document}
}

func send(ctx context.Context, b *postbustest.Broker, msgs ...*outbox.Message) []outbox.Result {
	results := make([]outbox.Result, len(msgs))
	b.PublishBatch(ctx, msgs, results)
	return results
}

func TestBrokerRemembersInOrder(t *testing.T) {
	t.Parallel()
	var b postbustest.Broker
	first, second := messageOf(t, OrderPlaced{OrderID: "o-1", Cents: 5}), messageOf(t, OrderCancelled{OrderID: "o-1"})
	for i, r := range send(t.Context(), &b, first, second) {
		if r.Status != outbox.Done || r.Err != nil {
			t.Errorf("message %d: %v", i, r)
		}
	}
	id := first.EventID
	first.Payload[0], first.Headers["traceparent"], first.EventID = 'x', "changed", uuid.Nil // a relay's memory is used again
	got := b.Messages()
	if len(got) != 2 || got[0].EventID != id || got[0].Payload[0] != '{' || got[0].Headers["traceparent"] != "00-1" || got[1].EventType != "order.cancelled" {
		t.Errorf("got %+v", got)
	}
	placed := postbustest.RequirePublished[OrderPlaced](t, &b, postbustest.Times(1))
	if placed[0].Data.Cents != 5 || placed[0].PartitionKey != "o-1" {
		t.Errorf("got %+v", placed[0])
	}
}

// What a stock publisher gets is remembered as what a batch call gets.
func TestBrokerReadsWatermill(t *testing.T) {
	t.Parallel()
	var batch, stock postbustest.Broker
	m := messageOf(t, OrderPlaced{OrderID: "o-1"})
	send(t.Context(), &batch, m)
	if err := stock.Stock().Publish(m.Topic, m.Watermill()); err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprintf("%+v", batch.Messages()), fmt.Sprintf("%+v", stock.Messages()); a != b {
		t.Errorf("by batch\n%s\nby Watermill\n%s", a, b)
	}
	if _, ok := stock.Stock().(outbox.BatchPublisher); ok {
		t.Error("Stock has a batch call")
	}
	if err := stock.Publish("x", message.NewMessage("no uuid", nil)); err == nil {
		t.Error("a message without an event id is accepted")
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	mine := errors.New("mine")
	for _, c := range []struct {
		name     string
		fault    postbustest.Fault
		status   outbox.Status
		wraps    error
		accepted int
	}{
		{"refuse", postbustest.Refuse(mine), outbox.Passing, mine, 0},
		{"refuse, no error given", postbustest.Refuse(nil), outbox.Passing, nil, 0},
		{"refuse for good", postbustest.RefuseForGood(mine), outbox.Permanent, mine, 0},
		{"refuse for good, as an error", postbustest.RefuseForGood(nil), outbox.Permanent, outbox.ErrPermanent, 0},
		{"unavailable", postbustest.Unavailable(), outbox.Passing, outbox.ErrUnavailable, 0},
		{"lose message", postbustest.LoseMessage(), outbox.Unknown, nil, 0},
		{"lose answer", postbustest.LoseAnswer(), outbox.Unknown, nil, 1},
		{"slow", postbustest.Slow(time.Millisecond), outbox.Done, nil, 1},
	} {
		var b postbustest.Broker
		b.On(t, postbustest.When{}, c.fault)
		r := send(t.Context(), &b, messageOf(t, OrderPlaced{OrderID: "o-1"}))[0]
		if r.Status != c.status || (r.Err == nil) != (r.Status == outbox.Done) || c.wraps != nil && !errors.Is(r.Err, c.wraps) {
			t.Errorf("%s: %s, %v", c.name, r.Status, r.Err)
		}
		if n := len(b.Messages()); n != c.accepted {
			t.Errorf("%s: %d accepted, want %d", c.name, n, c.accepted)
		}
		if err := b.Publish("order", messageOf(t, OrderPlaced{OrderID: "o-1"}).Watermill()); (err == nil) != (c.status == outbox.Done) || c.wraps != nil && !errors.Is(err, c.wraps) {
			t.Errorf("%s: Publish gives %v", c.name, err)
		}
	}
}

func TestWhenPicksAttempts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		when   postbustest.When
		failed []int // of the six attempts below
	}{
		{postbustest.When{}, []int{0, 1, 2, 3, 4, 5}},
		{postbustest.When{Key: "o-1"}, []int{0, 2, 4}},
		{postbustest.When{Type: "order.cancelled"}, []int{4, 5}},
		{postbustest.When{Nth: 3}, []int{2}},
		{postbustest.When{First: 2}, []int{0, 1}},
		{postbustest.When{Key: "o-1", Nth: 2}, []int{2}},
		{postbustest.When{Key: "o-2", First: 2}, []int{1, 3}},
		{postbustest.When{Key: "o-1", Type: "order.cancelled"}, []int{4}},
		{postbustest.When{Key: "o-3"}, nil},
	} {
		var b postbustest.Broker
		rule := b.On(t, c.when, postbustest.Refuse(nil))
		var failed []int
		for i, p := range []events.Payload{OrderPlaced{OrderID: "o-1"}, OrderPlaced{OrderID: "o-2"}, OrderPlaced{OrderID: "o-1"},
			OrderPlaced{OrderID: "o-2"}, OrderCancelled{OrderID: "o-1"}, OrderCancelled{OrderID: "o-2"}} {
			if send(t.Context(), &b, messageOf(t, p))[0].Status != outbox.Done {
				failed = append(failed, i)
			}
		}
		if !slices.Equal(failed, c.failed) || rule.Hits() != len(c.failed) {
			t.Errorf("%+v: attempts %v failed, want %v; %d hits", c.when, failed, c.failed, rule.Hits())
		}
	}
	var b postbustest.Broker
	mustFail(t, func(t testing.TB) { b.On(t, postbustest.When{Nth: 1, First: 1}, postbustest.Refuse(nil)) }, "Nth is 1", "First is 1", "use one")
	mustFail(t, func(t testing.TB) { b.On(t, postbustest.When{}, postbustest.Fault{}) }, "Refuse")
}

func TestLastRuleHoldsUntilItIsStopped(t *testing.T) {
	t.Parallel()
	var b postbustest.Broker
	b.On(t, postbustest.When{Key: "o-1"}, postbustest.Refuse(nil))
	last := b.On(t, postbustest.When{}, postbustest.RefuseForGood(nil))
	status := func(key string) outbox.Status {
		return send(t.Context(), &b, messageOf(t, OrderPlaced{OrderID: key}))[0].Status
	}
	if a, c := status("o-1"), status("o-2"); a != outbox.Permanent || c != outbox.Permanent {
		t.Errorf("with both rules: %s, %s", a, c)
	}
	last.Stop()
	last.Stop()
	if a, c := status("o-1"), status("o-2"); a != outbox.Passing || c != outbox.Done {
		t.Errorf("with the first rule: %s, %s", a, c)
	}
}

func TestKeyStopsAtItsFirstFailure(t *testing.T) {
	t.Parallel()
	var b postbustest.Broker
	b.On(t, postbustest.When{Key: "o-1", Nth: 1}, postbustest.Refuse(nil))
	results := send(t.Context(), &b, messageOf(t, OrderPlaced{OrderID: "o-1"}), messageOf(t, OrderPlaced{OrderID: "o-2"}), messageOf(t, OrderCancelled{OrderID: "o-1"}))
	if results[0].Status != outbox.Passing || results[1].Status != outbox.Done || results[2].Status != outbox.NotAttempted {
		t.Errorf("got %v", results)
	}
}

func TestHangUntilStopped(t *testing.T) {
	t.Parallel()
	var b postbustest.Broker
	rule := b.On(t, postbustest.When{}, postbustest.Hang())
	m := messageOf(t, OrderPlaced{OrderID: "o-1"})
	done := make(chan []outbox.Result)
	go func() { done <- send(context.Background(), &b, m) }()
	rule.WaitHits(t, 1)
	postbustest.RequireNothingPublished(t, &b)
	rule.Stop()
	if r := <-done; r[0].Status != outbox.Done {
		t.Errorf("after Stop: %v", r)
	}
	b.WaitFor(t, 1)
}

func TestDeadlineOfWhatHangs(t *testing.T) {
	t.Parallel()
	for _, fault := range []postbustest.Fault{postbustest.Hang(), postbustest.Slow(time.Hour)} {
		var b postbustest.Broker
		b.On(t, postbustest.When{}, fault)
		ctx, cancel := context.WithCancel(t.Context())
		m, next := messageOf(t, OrderPlaced{OrderID: "o-1"}), messageOf(t, OrderPlaced{OrderID: "o-2"})
		done := make(chan []outbox.Result)
		go func() { done <- send(ctx, &b, m, next) }()
		cancel()
		r := <-done
		hung := r[0].Status == outbox.Unknown && errors.Is(r[0].Err, context.Canceled) || r[0].Status == outbox.NotAttempted
		if !hung || r[1].Status != outbox.NotAttempted || len(b.Messages()) != 0 {
			t.Errorf("got %v, %d accepted", r, len(b.Messages()))
		}
	}
}

// A rule ends with its test, so that nothing hangs on.
func TestRuleEndsWithTheTest(t *testing.T) {
	t.Parallel()
	var b postbustest.Broker
	t.Run("inner", func(t *testing.T) { b.On(t, postbustest.When{}, postbustest.Hang()) })
	if r := send(t.Context(), &b, messageOf(t, OrderPlaced{OrderID: "o-1"})); r[0].Status != outbox.Done {
		t.Errorf("got %v", r)
	}
}

func TestSlowTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b postbustest.Broker
		b.On(t, postbustest.When{}, postbustest.Slow(time.Minute))
		before := time.Now()
		send(t.Context(), &b, messageOf(t, OrderPlaced{OrderID: "o-1"}))
		if took := time.Since(before); took != time.Minute {
			t.Errorf("took %s", took)
		}
	})
}

func TestWaitForSaysWhatCame(t *testing.T) {
	t.Parallel()
	var b postbustest.Broker
	b.On(t, postbustest.When{Key: "o-2"}, postbustest.Refuse(nil))
	send(t.Context(), &b, messageOf(t, OrderPlaced{OrderID: "o-1"}), messageOf(t, OrderPlaced{OrderID: "o-2"}))
	mustFail(t, func(t testing.TB) { b.WaitFor(t, 2, postbustest.Within(time.Millisecond)) },
		"wait for 2 messages", "accepted 1", `order.placed v1  key "o-1"`, "Refuse: 1 times", `of key "o-2"`)
	mustFail(t, func(t testing.TB) {
		b.On(t, postbustest.When{Type: "x"}, postbustest.Hang()).WaitHits(t, 1, postbustest.Within(time.Millisecond))
	}, "1 hits of the fault Hang", "of type x", "there were 0")
}

func TestWaitForFromManyGoroutines(t *testing.T) {
	t.Parallel()
	var b postbustest.Broker
	rule := b.On(t, postbustest.When{First: 10}, postbustest.LoseAnswer())
	var sending sync.WaitGroup
	for i := range 50 {
		m := messageOf(t, OrderPlaced{OrderID: fmt.Sprint("o-", i)})
		sending.Go(func() { send(context.Background(), &b, m) })
	}
	if got := b.WaitFor(t, 50); len(got) != 50 {
		t.Errorf("%d messages", len(got))
	}
	rule.WaitHits(t, 10)
	sending.Wait()
}

func TestClosedBrokerRefuses(t *testing.T) {
	t.Parallel()
	var b postbustest.Broker
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if r := send(t.Context(), &b, messageOf(t, OrderPlaced{OrderID: "o-1"}))[0]; r.Status != outbox.Passing || r.Err == nil {
		t.Errorf("got %v", r)
	}
}
