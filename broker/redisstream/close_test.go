package redisstream

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/internal/testkit"
)

func (b *safeBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// closing runs Close beside the test.
func closing(s *Subscriber) <-chan error {
	done := make(chan error, 1)
	go func() { done <- s.Close() }()
	return done
}

func TestCloseWaitsForTheHandler(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 2)
	for _, by := range []string{"Close", "the context"} {
		ctx, cancel := context.WithCancel(context.Background())
		s := newSubscriber(t, SubscriberConfig{Client: c})
		ch, err := s.Subscribe(ctx, stream)
		if err != nil {
			t.Fatal(err)
		}
		m := receive(t, ch)
		if by == "the context" {
			cancel()
		}
		closed := closing(s)
		select {
		case <-closed:
			t.Fatalf("by %s: Close did not wait for the handler", by)
		case <-m.Context().Done():
			t.Fatalf("by %s: the handler's context was cancelled before its time was over", by)
		case <-time.After(100 * time.Millisecond):
		}
		m.Ack()
		if err := <-closed; err != nil {
			t.Error(err)
		}
		isClosed(t, ch)
		if n := pendingCount(t, c, stream); n != 0 {
			t.Errorf("by %s: %d entries are pending, want none: it was handled", by, n)
		}
		cancel()
	}
}

// What was not handled is given back, so that others need not wait for MinIdle.
func TestCloseGivesBack(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 1)
	heir := newSubscriber(t, SubscriberConfig{Client: c, MinIdle: time.Hour, ClaimInterval: 10 * time.Millisecond})
	var inherited <-chan *message.Message
	for count, how := range []string{"nobody reads", "nacked", "nacked while it waits", "handler heeds its context"} {
		s := newSubscriber(t, SubscriberConfig{Client: c, MinIdle: time.Hour, ClaimInterval: 10 * time.Millisecond,
			NackDelay: time.Hour, MaxNackDelay: time.Hour, CloseTimeout: 50 * time.Millisecond})
		ch := subscribe(t, s, stream)
		var closed <-chan error
		switch how {
		case "nobody reads":
			testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 1 }, "the entry is read")
			closed = closing(s)
		case "nacked":
			m := receive(t, ch)
			closed = closing(s)
			m.Nack()
		case "nacked while it waits":
			receive(t, ch).Nack()
			closed = closing(s)
		case "handler heeds its context":
			m := receive(t, ch)
			closed = closing(s)
			<-m.Context().Done()
			if cause := context.Cause(m.Context()); !errors.Is(cause, ErrCloseTimeout) {
				t.Errorf("the cause is %v", cause)
			}
			m.Nack()
		}
		if err := <-closed; err != nil {
			t.Errorf("%s: %v", how, err)
		}
		isClosed(t, ch)
		_ = count
	}
	inherited = subscribe(t, heir, stream)
	m := receive(t, inherited)
	if m.UUID != "1" || m.Metadata[HeaderDeliveryCount] != "5" {
		t.Errorf("got message %s %v", m.UUID, m.Metadata)
	}
	m.Ack()
}

func TestCloseGivesUpOnStuckHandler(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 1)
	s := newSubscriber(t, SubscriberConfig{Client: c, CloseTimeout: 50 * time.Millisecond})
	ch := subscribe(t, s, stream)
	receive(t, ch)
	started := time.Now()
	if err := s.Close(); !errors.Is(err, ErrCloseTimeout) {
		t.Errorf("Close returns %v", err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("Close took %s", took)
	}
	isClosed(t, ch)
	if n := pendingCount(t, c, stream); n != 1 {
		t.Errorf("%d entries are pending, want the one that was not handled", n)
	}
}

func TestCloseAtAnyTime(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	s := newSubscriber(t, SubscriberConfig{Client: c})
	if err := s.Close(); err != nil { // before Subscribe
		t.Error(err)
	}
	if _, err := s.Subscribe(context.Background(), prefix+"s"); !errors.Is(err, ErrClosed) {
		t.Errorf("Subscribe after Close: error is %v", err)
	}
	s = newSubscriber(t, SubscriberConfig{Client: c})
	if _, err := s.Subscribe(context.Background(), ""); err == nil {
		t.Error("Subscribe without a topic: no error")
	}
	var all sync.WaitGroup
	for range 4 { // with Subscribe, and with itself
		all.Go(func() {
			ch, err := s.Subscribe(context.Background(), prefix+"s")
			if err != nil {
				if !errors.Is(err, ErrClosed) && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				return
			}
			for m := range ch {
				m.Ack()
			}
		})
		all.Go(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := c.Ping(context.Background()).Err(); err != nil {
		t.Errorf("the caller's client was closed: %v", err)
	}
}

func TestSubscribeFailsAtOnce(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	c.Set(context.Background(), prefix+"string", "x", 0)
	s := newSubscriber(t, SubscriberConfig{Client: c})
	if _, err := s.Subscribe(context.Background(), prefix+"string"); err == nil {
		t.Error("a key of another type: no error")
	}
	server := startRedis(t)
	dead := server.client()
	server.kill()
	if _, err := newSubscriber(t, SubscriberConfig{Client: dead}).Subscribe(context.Background(), "s"); err == nil {
		t.Error("a dead server: no error")
	}
}

// Watermill's router cancels Subscribe's context at the very start of Close,
// while a handler runs.
func TestRouterCloseRepeatsNothing(t *testing.T) {
	noLeaks(t)
	c, stream := testkit.Redis(t), testkit.Prefix(t)+"s"
	publishNumbers(t, newPublisher(t, PublisherConfig{Client: c}), stream, 1, 1)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: patience}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	handling, goOn := make(chan struct{}), make(chan struct{})
	router.AddConsumerHandler("h", stream, newSubscriber(t, SubscriberConfig{Client: c}), func(m *message.Message) error {
		close(handling)
		<-goOn
		return m.Context().Err()
	})
	ran := make(chan error, 1)
	go func() { ran <- router.Run(context.Background()) }()
	<-handling
	done := make(chan error, 1)
	go func() { done <- router.Close() }()
	testkit.Eventually(t, patience, router.IsRunning, "the router runs")
	close(goOn)
	if err := errors.Join(<-done, <-ran); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, patience, func() bool { return pendingCount(t, c, stream) == 0 }, "the message is acknowledged")
}
