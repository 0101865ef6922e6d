package brokertest

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/internal/testkit/process"
	"github.com/postbus/postbus/outbox"
)

// away: nobody listens at the address.
func away(r *room) (string, error) {
	port, err := process.FreePort()
	if err != nil {
		r.t.Fatal(err)
	}
	p := testkit.NewProxy(r.t, r.address) // for an address of the same form
	p.Retarget(fmt.Sprintf("127.0.0.1:%d", port))
	p.Refuse()
	const wait = time.Second
	topic := r.topic()
	began := time.Now()
	err = call(stuckAfter, func() error {
		pub, err := r.newPublisher(at(p.URL()), timeout(wait))
		if err != nil {
			return err // there are those that connect at once
		}
		return pub.Publish(topic, numbered(topic, "key", 1, 0).Watermill())
	})
	publish := time.Since(began)
	switch {
	case err == nil:
		return "", errors.New("the message was accepted")
	case !errors.Is(err, outbox.ErrUnavailable):
		return "", fmt.Errorf("publish: the error does not say so: %v", err)
	case publish > wait+callOverhead:
		return "", fmt.Errorf("publish took %s, the limit was %s", publish, wait)
	}
	began = time.Now()
	sub, err := r.newSubscriber(at(p.URL()), timeout(wait))
	if err == nil {
		_, err = r.subscribe(sub, topic)
	}
	subscribe := time.Since(began)
	if err == nil || errors.Is(err, errStuck) {
		return "", fmt.Errorf("subscribe: want an error, got %v after %s", err, subscribe)
	}
	return figuresOf("publish after %s, subscribe after %s", publish.Round(time.Millisecond), subscribe.Round(time.Millisecond)), nil
}

// deadline: the network swallows everything. The call ends, and tells nothing that is not so;
// when the network is back, what was not accepted is sent again.
func deadline(r *room) (string, error) {
	topic := r.topic()
	proxy := r.proxy()
	const wait = time.Second
	p := r.publisher(at(proxy.URL()), timeout(wait))
	l := newLedger()
	if _, err := r.consume(topic, l.handler(0)); err != nil {
		return "", err
	}
	first := []*outbox.Message{numbered(topic, "key-0", 1, 0)}
	var results []outbox.Result
	var err error
	if e := until(r.b.Patience, func() bool { // its first connection may take longer than the limit, on a machine that is busy
		results, err = send(p, first, quickly)
		return err != nil || results[0].Status == outbox.Done
	}, "the first message to be accepted"); e != nil || err != nil {
		return "", errors.Join(e, err, firstError(results))
	}
	var msgs []*outbox.Message
	for i := range 20 {
		msgs = append(msgs, numbered(topic, fmt.Sprintf("key-%d", i%5), 2+i/5-min(1, i%5), 0))
	}
	proxy.Stall()
	began := time.Now()
	results, err = send(p, msgs, wait)
	took := time.Since(began)
	if took > wait+callOverhead {
		proxy.Resume()
		return "", fmt.Errorf("it took %s, the limit was %s (%v)", took.Round(time.Millisecond), wait, err)
	}
	for i, result := range results {
		if result.Status == outbox.Done || result.Status == outbox.Permanent {
			return "", fmt.Errorf("message %d is %s, though nothing got through (%v)", i, result.Status, result.Err)
		}
	}
	proxy.Resume()
	again := 0
	if err := until(r.b.Patience, func() bool {
		again++
		results, err = send(p, msgs, callTimeout)
		if err != nil {
			return true
		}
		var left []*outbox.Message
		for i, result := range results {
			if result.Status != outbox.Done {
				left = append(left, msgs[i])
			}
		}
		msgs = left
		return len(left) == 0
	}, "the publisher to go on once the network is back"); err != nil {
		return "", fmt.Errorf("%w; it says %v", err, firstError(results))
	}
	if err != nil {
		return "", err
	}
	if err := until(r.b.Patience, func() bool { return l.done() == 21 }, "all messages to come; %d of 21 have", l.done); err != nil {
		return "", err
	}
	return figuresOf("ended after %s of %s, sent again %d times, %d repeats", took.Round(time.Millisecond), wait, again, l.repeated()), l.order()
}

// pipelines: answers that are late must not be waited for one by one. What one message takes
// by itself is measured first: machines differ, and how busy they are.
func pipelines(r *room) (string, error) {
	const alone, n, late = 5, 100, 50 * time.Millisecond
	topic := r.topic()
	proxy := r.proxy()
	p := r.publisher(at(proxy.URL()), timeout(stuckAfter))
	l := newLedger()
	if _, err := r.consume(topic, l.handler(0)); err != nil {
		return "", err
	}
	publish := func(msgs []*outbox.Message) (time.Duration, error) {
		began := time.Now()
		results, err := send(p, msgs, stuckAfter)
		if err == nil {
			err = firstError(results)
		}
		return time.Since(began), err
	}
	if _, err := publish([]*outbox.Message{numbered(topic, "first", 1, 0)}); err != nil {
		return "", fmt.Errorf("publish: %w", err)
	}
	proxy.Delay(late)
	var one time.Duration
	for i := range alone {
		took, err := publish([]*outbox.Message{numbered(topic, "first", 2+i, 0)})
		if err != nil {
			return "", fmt.Errorf("publish: %w", err)
		}
		one += took / alone
	}
	var msgs []*outbox.Message
	for i := range n {
		msgs = append(msgs, numbered(topic, fmt.Sprintf("key-%d", i%40), 1+i/40, 300))
	}
	took, err := publish(msgs)
	proxy.Delay(0)
	figures := figuresOf("%d messages in %s, one in %s, each answer %s late", n, took.Round(time.Millisecond), one.Round(time.Millisecond), late)
	if err != nil {
		return figures, err
	}
	if err := until(r.b.Patience, func() bool { return l.done() == 1+alone+n }, "all messages to come; %d of %d have", l.done, 1+alone+n); err != nil {
		return figures, err
	}
	// At most twice the delay: some open a channel first, which takes round trips of its own.
	if took > n*min(one, 2*late)/3 {
		return figures, errors.New("so it waits for every answer")
	}
	return figures, nil
}

func publisherCut(r *room) (string, error)  { return r.cut(true) }
func subscriberCut(r *room) (string, error) { return r.cut(false) }

// cut cuts all connections of one side again and again.
func (r *room) cut(publisher bool) (string, error) {
	topic := r.topic()
	proxy := r.proxy()
	toPublisher, toSubscriber := r.address, proxy.URL()
	if publisher {
		toPublisher, toSubscriber = proxy.URL(), r.address
	}
	l := newLedger()
	if _, err := r.consume(topic, l.handler(0), at(toSubscriber)); err != nil {
		return "", err
	}
	s := r.load(r.publisher(at(toPublisher)), topic, l)
	cuts := 3
	if Long {
		cuts = 20
	}
	for i := range cuts {
		if err := s.progress(60, r.b.Patience); err != nil {
			return "", err
		}
		switch i % 3 {
		case 0: // whenever it is
			proxy.CutAll()
		case 1: // in the middle of what is sent
			proxy.OnClientBytes(once(testkit.Cut))
		case 2: // between what is sent and its answer
			proxy.OnClientBytes(once(testkit.LoseReply))
		}
	}
	if err := s.progress(60, r.b.Patience); err != nil {
		return "", fmt.Errorf("after the last cut: %w", err)
	}
	return s.finish(r, cuts, r.b.Capabilities.OrderPerKey == Yes)
}

// once is a hook that acts on the next piece only.
func once(action testkit.Action) func([]byte) testkit.Action {
	var used atomic.Bool
	return func([]byte) testkit.Action {
		if used.Swap(true) {
			return testkit.Forward
		}
		return action
	}
}

func publisherFrozen(r *room) (string, error)  { return r.frozen(true) }
func subscriberFrozen(r *room) (string, error) { return r.frozen(false) }

// frozen: the peer has gone without a word. The connections stay and carry nothing; new ones
// work.
func (r *room) frozen(publisher bool) (string, error) {
	topic := r.topic()
	proxy := r.proxy()
	toPublisher, toSubscriber := r.address, proxy.URL()
	if publisher {
		toPublisher, toSubscriber = proxy.URL(), r.address
	}
	l := newLedger()
	if _, err := r.consume(topic, l.handler(0), at(toSubscriber)); err != nil {
		return "", err
	}
	const wait = 2 * time.Second
	s := r.loadWithin(wait, r.publisher(at(toPublisher), timeout(wait)), topic, l)
	if err := s.progress(60, r.b.Patience); err != nil {
		return "", err
	}
	proxy.Freeze()
	began := time.Now()
	if err := s.progress(2*ahead, r.b.Reconnects); err != nil {
		return "", err
	}
	took := time.Since(began)
	figures, err := s.finish(r, 1, r.b.Capabilities.OrderPerKey == Yes)
	return figuresOf("went on after %s; %s", took.Round(100*time.Millisecond), figures), err
}
