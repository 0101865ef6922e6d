package sqs

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/internal/testkit"
)

// Nobody reads the channel: Close ends all the same, and gives back what was received,
// at once.
func TestCloseGivesBack(t *testing.T) {
	together(t)
	c := client(t)
	for _, suffix := range []string{"", ".fifo"} {
		queue := newQueue(t, c, suffix)
		p := newPublisher(t, PublisherConfig{Client: c})
		for i := range 15 {
			mustPublish(t, p, queue, keyedMessage("k"+strconv.Itoa(i%3), "x"))
		}
		s := newSubscriber(t, SubscriberConfig{Client: c})
		subscribe(t, s, queue)
		testkit.Eventually(t, patience, func() bool { l, err := s.Lag(context.Background()); return err == nil && l[0].InFlight == 15 }, "all are here")
		began := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %s", took)
		}
		drain(t, c, queue, 15)
	}
}

func TestCloseWaitsForTheHandler(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, ".fifo")
	p, s := newPublisher(t, PublisherConfig{Client: c}), newSubscriber(t, SubscriberConfig{Client: c})
	ch := subscribe(t, s, queue)
	mustPublish(t, p, queue, keyedMessage("k", "1"), keyedMessage("k", "2"), keyedMessage("k", "3"))
	m := receiveMessage(t, ch)
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	url := queueURL(t, c, queue)
	for range 2 {
		if got := receiveOnce(t, c, url, 1); len(got) > 0 {
			t.Fatalf("%s is visible while its group's first is handled", *got[0].Body)
		}
	}
	if m.Context().Err() != nil {
		t.Error("its context has ended")
	}
	m.Ack()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if m, open := <-ch; open {
		t.Errorf("got %s", m.Payload)
	}
	var rest []string
	for _, r := range drain(t, c, queue, 2) {
		rest = append(rest, *r.Body)
	}
	if got := strings.Join(rest, " "); got != "2 3" {
		t.Errorf("left: %s", got)
	}
}

func TestCloseGivesUpOnStuckHandler(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	s := newSubscriber(t, SubscriberConfig{Client: c, CloseTimeout: 100 * time.Millisecond, Visibility: 2 * time.Second})
	ch := subscribe(t, s, queue)
	mustPublish(t, p, queue, keyedMessage("k", "x"))
	m := receiveMessage(t, ch)
	if err := s.Close(); !errors.Is(err, ErrCloseTimeout) {
		t.Error(err)
	}
	if cause := context.Cause(m.Context()); cause != ErrCloseTimeout {
		t.Errorf("cause %v", cause)
	}
	drain(t, c, queue, 1)
}

func TestSubscriberCloseAtAnyTime(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, "")
	p := newPublisher(t, PublisherConfig{Client: c})
	if err := newSubscriber(t, SubscriberConfig{Client: c}).Close(); err != nil {
		t.Errorf("before use: %v", err)
	}
	// Under load, by several, twice.
	var log logged
	defer func() { t.Log(log.String()) }()
	s := newSubscriber(t, SubscriberConfig{Client: c, Logger: log.logger()})
	handled := map[string]bool{}
	var mu sync.Mutex
	var work sync.WaitGroup
	for range 2 {
		ch := subscribe(t, s, queue)
		work.Go(func() {
			for m := range ch {
				mu.Lock()
				if handled[m.UUID] {
					t.Errorf("%s was handled twice", m.UUID)
				}
				handled[m.UUID] = true
				mu.Unlock()
				m.Ack()
			}
		})
	}
	total := 0
	for range 10 {
		var msgs []*message.Message
		for range 20 {
			msgs = append(msgs, keyedMessage(strconv.Itoa(total), "x"))
			total++
		}
		mustPublish(t, p, queue, msgs...)
	}
	testkit.Eventually(t, patience, func() bool { mu.Lock(); defer mu.Unlock(); return len(handled) > 20 }, "some are handled")
	var closers sync.WaitGroup
	for range 3 {
		closers.Go(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closers.Wait()
	work.Wait()
	// The end of a context ends its subscription.
	ctx, cancel := context.WithCancel(context.Background())
	next := newSubscriber(t, SubscriberConfig{Client: c})
	ch, err := next.Subscribe(ctx, queue)
	if err != nil {
		t.Fatal(err)
	}
	for len(handled) < total {
		m := receiveMessage(t, ch)
		if handled[m.UUID] {
			t.Errorf("%s was handled twice", m.UUID)
		}
		handled[m.UUID] = true
		m.Ack()
	}
	empty(t, c, queue)
	cancel()
	if _, open := <-ch; open {
		t.Error("a message came from nowhere")
	}
}

// Connections that are cut, answers that are lost and a network that stalls, on
// the subscriber's side: nothing is lost, each key in order.
func TestSubscriberOnABadNetwork(t *testing.T) {
	together(t)
	c := client(t)
	queue := newQueue(t, c, ".fifo")
	proxy := testkit.NewProxy(t, testkit.SQS(t))
	p := newPublisher(t, PublisherConfig{Client: c})
	var log logged
	s := newSubscriber(t, SubscriberConfig{Client: clientAt(t, "http://"+proxy.Addr()), Visibility: 3 * time.Second, Logger: log.logger()})
	ch := subscribe(t, s, queue)
	next := map[string]int{}
	var mu sync.Mutex
	var handled atomic.Int32
	var work sync.WaitGroup
	work.Go(func() {
		for m := range ch {
			n, _ := strconv.Atoi(string(m.Payload))
			mu.Lock()
			switch key := m.Metadata[HeaderGroupID]; {
			case n > next[key]:
				t.Errorf("key %s: %d came when %d was next", key, n, next[key])
			case n == next[key]:
				next[key]++
				handled.Add(1)
			}
			mu.Unlock()
			m.Ack()
		}
	})
	sent := int32(0)
	send := func() {
		for n := range 5 {
			for k := range 4 {
				mustPublish(t, p, queue, keyedMessage("k"+strconv.Itoa(k), strconv.Itoa(int(sent)/20*5+n)))
			}
		}
		sent += 20
	}
	for _, trouble := range []func(){proxy.CutAll, proxy.DropReplies, proxy.Stall} {
		send()
		trouble()
		send()
		proxy.CutAll()
		proxy.Resume()
		testkit.Eventually(t, 2*patience, func() bool { return handled.Load() == sent }, "all that was sent is handled")
	}
	empty(t, c, queue) // repeats are handled, too
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	work.Wait()
	if n := strings.Count(log.String(), "is interrupted"); n < 1 || n > 12 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
}

// A server that is killed and comes back with what it had: nothing is lost. (The
// order of what it had is not looked at: ElasticMQ forgets it.)
func TestServerKilledInMidRun(t *testing.T) {
	together(t)
	server := testkit.PrivateElasticMQ(t)
	c := clientAt(t, "http://"+server.Addr())
	queue := newQueue(t, c, ".fifo")
	p := newPublisher(t, PublisherConfig{Client: clientAt(t, "http://"+server.Addr()), Timeout: 2 * time.Second})
	s := newSubscriber(t, SubscriberConfig{Client: clientAt(t, "http://"+server.Addr()), Visibility: 3 * time.Second})
	ch := subscribe(t, s, queue)
	var mu sync.Mutex
	seen := map[string]bool{}
	var work sync.WaitGroup
	work.Go(func() {
		for m := range ch {
			mu.Lock()
			seen[m.UUID] = true
			mu.Unlock()
			m.Ack()
		}
	})
	const total = 60
	for n := range total {
		m := keyedMessage("k"+strconv.Itoa(n%3), "x")
		for p.Publish(queue, m) != nil { // what is unknown or was not sent is sent again
			m = m.Copy()
		}
		if n == total/2 {
			server.Kill()
			server.Start()
		}
	}
	testkit.Eventually(t, 2*patience, func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) == total }, "all are handled")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	work.Wait()
}
