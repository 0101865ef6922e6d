package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// A server that has stopped answering: the call ends with its deadline, what was
// sent is Unknown, and what was not is not sent when the network comes back.
func TestDeadlineOnStall(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}})
	proxy := testkit.NewProxy(t, testkit.RabbitMQ(t))
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange, Connection: ConnectionConfig{URL: proxy.URL()}})
	allDone(t, publishBatch(p, outboxMessage(q, "first", 0)))

	proxy.Stall()
	const n, size = 400, 100 << 10 // 40 MB: more than all buffers on the way
	msgs := make([]*outbox.Message, n)
	for i := range msgs {
		msgs[i] = outboxMessage(q, fmt.Sprint(i), 0)
		msgs[i].Payload = make([]byte, size)
	}
	results := make([]outbox.Result, n)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	p.PublishBatch(ctx, msgs, results)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the call took %s", took)
	}
	unknown := 0
	for i, r := range results {
		switch {
		case r.Status == outbox.Unknown:
			unknown++
		case r.Status != outbox.Passing:
			t.Fatalf("message %d: %s %v", i, r.Status, r.Err)
		}
		if !errors.Is(r.Err, outbox.ErrUnavailable) || !errors.Is(r.Err, context.DeadlineExceeded) {
			t.Fatal(r.Err)
		}
	}
	if unknown == 0 || unknown == n {
		t.Errorf("%d of %d are unknown", unknown, n)
	}
	proxy.Resume()
	last := outboxMessage(q, "last", 0)
	testkit.Eventually(t, patience, func() bool { return publishBatch(p, last)[0].Status == outbox.Done }, "the publisher works again")
	got := 0
	ch := admin(t, testkit.RabbitMQ(t))
	testkit.Eventually(t, patience, func() bool {
		for {
			d, ok, err := ch.Get(q, true)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return false
			}
			if d.MessageId == last.EventID.String() {
				return true
			}
			got++
		}
	}, "the last message")
	if got-1 > unknown {
		t.Errorf("%d messages arrived, but only %d were called sent", got-1, unknown)
	}
}

// Cuts at any moment: what is Done is there, what is not is told, and the first
// deliveries of each key are in order.
func TestCutsUnderLoad(t *testing.T) {
	for _, typ := range []QueueType{Classic, Quorum} {
		t.Run(typ.String(), func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, Type: typ}}})
			proxy := testkit.NewProxy(t, testkit.RabbitMQ(t))
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange, Connection: ConnectionConfig{URL: proxy.URL()}})
			done := make(chan struct{})
			var cutting sync.WaitGroup
			cutting.Go(func() {
				tick := time.NewTicker(40 * time.Millisecond)
				defer tick.Stop()
				for range 12 {
					<-tick.C
					proxy.CutAll()
				}
				close(done)
			})
			publishInOrder(t, p, q, 4, 5, done)
			cutting.Wait()
			firstInOrder(t, q, 4*5)
		})
	}
}

// publishInOrder has goroutines publish keys of their own as a relay does, until
// done and all of it is in the queue.
func publishInOrder(t testing.TB, p *Publisher, q string, goroutines, keys int, done <-chan struct{}) {
	t.Helper()
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			for n := 0; ; n += 20 {
				select {
				case <-done:
					return
				default:
				}
				var left []*outbox.Message
				for i := range 20 {
					for k := range keys {
						left = append(left, outboxMessage(q, fmt.Sprintf("%d/%d", g, k), n+i))
					}
				}
				for deadline := time.Now().Add(time.Minute); len(left) > 0; {
					results := publishBatch(p, left...)
					left = leftOver(t, left, results)
					if errors.Is(results[0].Err, outbox.ErrUnavailable) {
						<-time.After(2 * time.Millisecond) // the pace of a relay is slower still
					}
					if time.Now().After(deadline) {
						t.Errorf("%d messages do not get through: %v", len(left), results[0])
						return
					}
				}
			}
		})
	}
	all.Wait()
}

// firstInOrder reads the queue empty: per key the first deliveries must count up
// without a gap.
func firstInOrder(t testing.TB, q string, keys int) {
	t.Helper()
	firstInOrderAt(t, testkit.RabbitMQ(t), q, keys)
}

func firstInOrderAt(t testing.TB, address, q string, keys int) {
	t.Helper()
	ch := admin(t, address)
	next, repeats, total := make(map[string]int), 0, 0
	for {
		d, ok, err := ch.Get(q, true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		total++
		var n int
		key := d.Headers["partition_key"].(string)
		if _, err := fmt.Sscanf(string(d.Body), fmt.Sprintf(`{"key":%q,"n":%%d}`, key), &n); err != nil {
			t.Fatal(err, string(d.Body))
		}
		switch {
		case n == next[key]:
			next[key]++
		case n < next[key]:
			repeats++
		default:
			t.Fatalf("key %s: %d comes before %d", key, n, next[key])
		}
	}
	if len(next) != keys {
		t.Errorf("%d keys, want %d", len(next), keys)
	}
	for key, n := range next {
		if n%20 != 0 {
			t.Errorf("key %s ends at %d: something is missing", key, n)
		}
	}
	t.Logf("%d messages, %d repeats", total, repeats)
}

func TestServerAway(t *testing.T) {
	noLeaks(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := listener.Addr().String()
	listener.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()

	real, err := url.Parse(testkit.RabbitMQ(t))
	if err != nil {
		t.Fatal("the address of RabbitMQ is not a URL")
	}
	const secret = "s3cr3t-Pa55"
	address := func(host, vhost string, user *url.Userinfo) string {
		return (&url.URL{Scheme: "amqp", User: user, Host: host, Path: "/" + vhost}).String()
	}
	wrong := url.UserPassword("who", secret)
	for _, c := range []struct{ name, url, text string }{
		{"nobody", address(nobody, "", wrong), "is RabbitMQ running there?"},
		{"silence", address(silent.Addr().String(), "", wrong), "nothing answers there in time"},
		// RabbitMQ lets those who guess passwords wait for three seconds.
		{"wrong password", address(real.Host, "", wrong), "look at user and password"},
		{"wrong virtual host", address(real.Host, "nowhere", real.User), "look at the virtual host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var told lines
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange, Logger: told.logger(),
				Connection: ConnectionConfig{URL: c.url, ConnectTimeout: 4 * time.Second}})
			start := time.Now()
			err := p.Ready(context.Background())
			if !errors.Is(err, outbox.ErrUnavailable) || !strings.Contains(err.Error(), c.text) {
				t.Error(err)
			}
			r := publishBatch(p, outboxMessage("q", "k", 0))[0] // without another try: it is down
			if r.Status != outbox.Passing || !errors.Is(r.Err, outbox.ErrUnavailable) {
				t.Error(r)
			}
			if took := time.Since(start); took > 6*time.Second {
				t.Errorf("took %s", took)
			}
			for _, text := range []string{err.Error(), r.Err.Error(), told.String()} {
				if strings.Contains(text, secret) || strings.Contains(text, "\n") && text != told.String() {
					t.Errorf("the text tells the password, or has several lines: %s", text)
				}
			}
			if told.count("it is tried again") != 1 {
				t.Errorf("logged: %s", told.String())
			}
		})
	}
}

func TestPublisherCloseAtAnyTime(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}})
	for range 15 {
		p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
		var all sync.WaitGroup
		for g := range 4 {
			all.Go(func() {
				for i := range 5 {
					msgs := outboxMessages(q, fmt.Sprint(g, i), 5)
					for _, r := range publishBatch(p, msgs...) {
						if r.Status != outbox.Done && !errors.Is(r.Err, ErrClosed) {
							t.Errorf("%s %v", r.Status, r.Err)
						}
					}
				}
			})
		}
		for range 2 {
			all.Go(func() {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Publish(q, nil); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	}
}

// A call that is cancelled leaves the others on the connection alone, and the
// next call does not take its answers.
func TestCancelledCallDisturbsNobody(t *testing.T) {
	noLeaks(t)
	q := testkit.Name(t)
	declare(t, Topology{Queues: []Queue{{Name: q, Type: Classic}}})
	p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
	allDone(t, publishBatch(p, outboxMessage(q, "k", 0)))
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for n := range 20 {
				ctx, cancel := context.WithCancel(context.Background())
				stop := time.AfterFunc(time.Duration(n)*100*time.Microsecond, cancel)
				msgs := make([]*outbox.Message, 20)
				for i := range msgs {
					msgs[i] = outboxMessage(q, fmt.Sprint(i), 0)
				}
				results := make([]outbox.Result, len(msgs))
				p.PublishBatch(ctx, msgs, results)
				for _, r := range results {
					ok := []outbox.Status{outbox.Done, outbox.NotAttempted, outbox.Unknown}
					if !slices.Contains(ok, r.Status) || r.Err != nil && !errors.Is(r.Err, context.Canceled) {
						t.Errorf("%s %v", r.Status, r.Err)
					}
				}
				stop.Stop()
				cancel()
			}
		})
	}
	for range 20 {
		allDone(t, publishBatch(p, outboxMessages(q, "k", 3)...))
	}
	all.Wait()
}
