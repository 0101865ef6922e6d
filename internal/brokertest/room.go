package brokertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/internal/testkit"
)

const (
	callTimeout  = 5 * time.Second  // of one publish, unless a case wants less
	stuckAfter   = 15 * time.Second // a call that takes longer is left behind
	askedFor     = 64               // messages in flight
	takeOver     = time.Second      // Options.Failover
	quickly      = 10 * time.Second // for what happens at once on a machine that is not busy
	callOverhead = 3 * time.Second  // beyond a deadline, on a machine that is busy
)

// room is where one case takes place.
type room struct {
	t       *testing.T
	b       Broker
	address string // of the server
}

func newRoom(t *testing.T, b Broker) *room {
	return &room{t: t, b: b, address: b.Address(t)}
}

func (r *room) topic() string { return r.b.NewTopic(r.t, r.address) }

// proxy stands before the server; what is made with its address goes through it.
func (r *room) proxy() *testkit.Proxy { return testkit.NewProxy(r.t, r.address) }

func (r *room) options(change []func(*Options)) Options {
	o := Options{Address: r.address, Timeout: callTimeout, MaxInFlight: askedFor, Failover: takeOver, OnEnd: r.t.Cleanup, Logger: quiet()}
	for _, c := range change {
		c(&o)
	}
	return o
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func at(address string) func(*Options) { return func(o *Options) { o.Address = address } }

func timeout(d time.Duration) func(*Options) { return func(o *Options) { o.Timeout = d } }

// newPublisher makes one that is closed, at the latest, at the end of the case.
func (r *room) newPublisher(change ...func(*Options)) (message.Publisher, error) {
	p, err := r.b.Publisher(r.options(change))
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { r.close("publisher", p) })
	return p, nil
}

func (r *room) newSubscriber(change ...func(*Options)) (message.Subscriber, error) {
	s, err := r.b.Subscriber(r.options(change))
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { r.close("subscriber", s) })
	return s, nil
}

// publisher makes one where the server is there.
func (r *room) publisher(change ...func(*Options)) message.Publisher {
	r.t.Helper()
	p, err := r.newPublisher(change...)
	if err != nil {
		r.t.Fatalf("make a publisher of %s: %v", r.b.Name, err)
	}
	return p
}

func (r *room) subscriber(change ...func(*Options)) message.Subscriber {
	r.t.Helper()
	s, err := r.newSubscriber(change...)
	if err != nil {
		r.t.Fatalf("make a subscriber of %s: %v", r.b.Name, err)
	}
	return s
}

// close leaves behind what does not come back: a leak, which the end of the case finds.
func (r *room) close(what string, c io.Closer) {
	if err := call(stuckAfter, c.Close); err != nil {
		r.t.Logf("close the %s: %v", what, err)
	}
}

var errStuck = errors.New("it does not return")

// call runs f, and no longer than limit: stock components may never return. A panic is an error.
func call(limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		done <- f()
	}()
	patience := time.NewTimer(limit)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-patience.C:
		return fmt.Errorf("after %s: %w", limit, errStuck)
	}
}

// subscribe is an error if the subscription does not come about.
func (r *room) subscribe(s message.Subscriber, topic string) (ch <-chan *message.Message, err error) {
	// Not r.t.Context(): it ends before the cleanups, and with it a subscription that is to be closed.
	ctx, cancel := context.WithCancel(context.Background())
	r.t.Cleanup(cancel)
	err = call(stuckAfter, func() (err error) {
		ch, err = s.Subscribe(ctx, r.b.Queue(topic))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return ch, nil
}

// until waits for a condition. what is a format and its arguments: what did not come about. Functions
// among them are asked when the wait is over: how far it came.
func until(limit time.Duration, condition func() bool, what string, args ...any) error {
	deadline := time.Now().Add(limit)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for next := time.Millisecond; ; next = min(2*next, 50*time.Millisecond) {
		<-pause.C
		if condition() {
			return nil
		}
		if time.Now().After(deadline) {
			var now []any
			for _, arg := range args {
				switch f := arg.(type) {
				case func() int:
					arg = f()
				case func() int64:
					arg = f()
				}
				now = append(now, arg)
			}
			return fmt.Errorf("waited %s in vain: %s", limit, fmt.Sprintf(what, now...))
		}
		pause.Reset(next)
	}
}
