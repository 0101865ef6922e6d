package brokertest

import (
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/outbox"
)

// order: one consumer with many in flight; a tenth of the first deliveries is nacked.
func order(r *room) (string, error) {
	topic := r.topic()
	l := newLedger()
	if _, err := r.consume(topic, l.handler(0.1)); err != nil {
		return "", err
	}
	s := r.load(r.publisher(), topic, l)
	n := 300
	if Long {
		n = 2000
	}
	if err := s.progress(n, 4*r.b.Patience); err != nil {
		return "", err
	}
	figures, err := s.finish(r, 0, true)
	return figuresOf("%s, %d nacked", figures, l.refused()), err
}

// inFlight: handlers that wait for each other.
func inFlight(r *room) (string, error) {
	topic := r.topic()
	var mu sync.Mutex
	var running, most int
	release := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(release) }) }
	defer open()
	c, err := r.consume(topic, func(m *message.Message) {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		select {
		case <-release:
		case <-m.Context().Done():
		}
		mu.Lock()
		running--
		mu.Unlock()
		m.Ack()
	})
	if err != nil {
		return "", err
	}
	p := r.publisher()
	for k := range 2 * askedFor {
		results, err := send(p, []*outbox.Message{numbered(topic, fmt.Sprintf("key-%d", k), 1, 0)}, callTimeout)
		if err == nil && results[0].Status != outbox.Done {
			err = results[0].Err
		}
		if err != nil {
			return "", fmt.Errorf("publish: %w", err)
		}
	}
	now := func() int { mu.Lock(); defer mu.Unlock(); return most }
	reached := until(quickly/2, func() bool { return now() >= askedFor }, "%d messages to be in flight", askedFor)
	figures := figuresOf("%d at once", now())
	open()
	if err := until(r.b.Patience, func() bool { return c.got.Load() >= 2*askedFor }, "all messages to come; %d came", c.got.Load); err != nil {
		return figures, err
	}
	if n := now(); n > askedFor {
		return figures, fmt.Errorf("%d were in flight at once; %d were asked for", n, askedFor)
	}
	return figures, reached
}

// members: consumers come and go under load, and never are there more than four.
func members(r *room) (string, error) {
	topic := r.topic()
	l := newLedger()
	handle := l.handler(0.05)
	join := func() (*consumer, error) { return r.consume(topic, handle) }
	first, err := join()
	if err != nil {
		return "", err
	}
	here := []*consumer{first}
	s := r.load(r.publisher(), topic, l)
	plan := []int{+1, +1, -1, +1, -1, -1}
	if Long {
		plan = []int{+1, +1, +1, -1, +1, -1, -1, +1, -1, +1, +1, -1, -1, +1, -1}
	}
	changes := 0
	for _, change := range plan {
		if err := s.progress(40, 2*r.b.Patience); err != nil {
			return "", fmt.Errorf("with %d consumers: %w", len(here), err)
		}
		if changes++; change > 0 {
			c, err := join()
			if err != nil {
				return "", err
			}
			here = append(here, c)
			continue
		}
		if err := here[0].stop(); err != nil { // the eldest, who has most
			return "", fmt.Errorf("stop one of %d consumers: %w", len(here), err)
		}
		here = here[1:]
	}
	if err := s.progress(40, 2*r.b.Patience); err != nil {
		return "", fmt.Errorf("with %d consumers: %w", len(here), err)
	}
	return s.finish(r, changes, true)
}

// gracefulStop: handlers are running when the subscriber is closed. They end undisturbed,
// and the next subscriber gets the others and only those.
func gracefulStop(r *room) (string, error) {
	const n = 20
	topic := r.topic()
	p := r.publisher()
	l := newLedger()
	var mu sync.Mutex
	entered, disturbed := 0, 0
	release := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(release) }) }
	defer open()
	first, err := r.consume(topic, func(m *message.Message) {
		key, n, ok := identify(m)
		if !ok {
			l.stranger(m)
			m.Ack()
			return
		}
		l.arrived(key, n)
		mu.Lock()
		entered++
		mu.Unlock()
		select {
		case <-release:
		case <-m.Context().Done():
			mu.Lock()
			disturbed++
			mu.Unlock()
		}
		l.handled(key, n)
		m.Ack()
	})
	if err != nil {
		return "", err
	}
	var msgs []*outbox.Message
	sent := map[string]int{}
	for k := range n {
		key := fmt.Sprintf("key-%d", k)
		sent[key] = 1
		msgs = append(msgs, numbered(topic, key, 1, 0))
	}
	for _, m := range msgs {
		if results, err := send(p, []*outbox.Message{m}, callTimeout); err != nil || results[0].Status != outbox.Done {
			return "", fmt.Errorf("publish: %v %v", err, results)
		}
	}
	now := func() int { mu.Lock(); defer mu.Unlock(); return entered }
	if err := until(r.b.Patience, func() bool { return now() > 0 }, "a message to come"); err != nil {
		return "", err
	}
	closed := make(chan error, 1)
	go func() { closed <- first.stop() }()
	// It must wait: nobody can see that nothing happens, but a moment's patience finds those
	// who cancel at once.
	patience := time.NewTimer(300 * time.Millisecond)
	defer patience.Stop()
	var early error
	select {
	case err := <-closed:
		early = fmt.Errorf("it did not wait for the handlers (%v)", err)
		closed <- err
	case <-patience.C:
	}
	held := now()
	open()
	if err := <-closed; err != nil {
		return "", err
	}
	if early != nil {
		return "", early
	}
	if disturbed > 0 {
		return "", fmt.Errorf("the contexts of %d handlers were cancelled", disturbed)
	}
	if _, err := r.consume(topic, l.handler(0)); err != nil {
		return "", err
	}
	if err := until(r.b.Patience, func() bool { return l.done() == n }, "the other messages to come; %d of %d have", l.done, n); err != nil {
		return "", err
	}
	// One more, to see what comes before it.
	if results, err := send(p, []*outbox.Message{numbered(topic, "key-0", 2, 0)}, callTimeout); err != nil || results[0].Status != outbox.Done {
		return "", fmt.Errorf("publish: %v %v", err, results)
	}
	if err := until(r.b.Patience, func() bool { return l.done() == n+1 }, "the last message to come"); err != nil {
		return "", err
	}
	if k := l.repeated(); k > 0 {
		return "", fmt.Errorf("%d messages came again, though their handlers had ended before the close did", k)
	}
	return figuresOf("%d handlers ended undisturbed, 0 repeats", held), nil
}
