package brokertest

import (
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/outbox"
)

// topics: one publisher and one subscriber for all of them.
func topics(r *room) (string, error) {
	n, listening := 20, 20
	if Long {
		n, listening = 1000, 100
	}
	began := time.Now()
	names := make([]string, n)
	for i := range names {
		names[i] = r.topic()
	}
	created := time.Since(began)
	p := r.publisher(timeout(stuckAfter))
	s := r.subscriber(func(o *Options) { o.MaxInFlight = 4 })
	l := newLedger()
	for _, topic := range names[:listening] {
		var ch <-chan *message.Message
		var err error
		if e := until(r.b.Patience, func() bool { // a server that has much to do may not answer at first
			ch, err = r.subscribe(s, topic)
			return !errors.Is(err, outbox.ErrUnavailable)
		}, "subscribe to topic %s", topic); e != nil || err != nil {
			return "", errors.Join(e, err)
		}
		consume(ch, s, l.handler(0))
	}
	began = time.Now()
	const each = 3
	for k := 1; k <= each; k++ {
		var msgs []*outbox.Message
		for i, topic := range names {
			msgs = append(msgs, numbered(topic, fmt.Sprintf("key-%d", i), k, 0))
		}
		if _, ok := p.(outbox.BatchPublisher); !ok {
			for _, m := range msgs {
				if err := call(stuckAfter, func() error { return p.Publish(m.Topic, m.Watermill()) }); err != nil {
					return "", fmt.Errorf("publish to topic %s: %w", m.Topic, err)
				}
			}
			continue
		}
		var results []outbox.Result
		var err error
		if e := until(2*r.b.Patience, func() bool { // what did not get its turn is sent again
			if results, err = send(p, msgs, stuckAfter); err != nil {
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
		}, "all messages to be accepted"); e != nil || err != nil {
			return "", errors.Join(e, err, firstError(results))
		}
	}
	published := time.Since(began)
	if err := until(2*r.b.Patience, func() bool { return l.done() >= each*listening }, "the messages of all topics; %d of %d came", l.done, each*listening); err != nil {
		return "", err
	}
	figures := figuresOf("%d topics, made in %s, %d messages published in %s, %d listened to", n, created.Round(time.Millisecond), each*n, published.Round(time.Millisecond), listening)
	return figures, l.order()
}

// lag: what is behind, and for how long.
func lag(r *room) (string, error) {
	if r.b.Lag == nil {
		return "", errors.New("there is no such call")
	}
	const n = 10
	topic := r.topic()
	p := r.publisher()
	s := r.subscriber(func(o *Options) { o.MaxInFlight = 1 })
	ch, err := r.subscribe(s, topic)
	if err != nil {
		return "", err
	}
	ask := func() (messages int64, oldest time.Duration) {
		err = call(stuckAfter, func() (err error) {
			messages, oldest, err = r.b.Lag(r.t.Context(), s, topic)
			return err
		})
		return messages, oldest
	}
	for k := 1; k <= n; k++ {
		if results, err := send(p, []*outbox.Message{numbered(topic, "key", k, 0)}, callTimeout); err != nil || results[0].Status != outbox.Done {
			return "", fmt.Errorf("publish: %v %v", err, results)
		}
	}
	var messages int64
	var oldest time.Duration
	is := func(want int64) error {
		if e := until(quickly, func() bool {
			messages, oldest = ask()
			return err == nil && messages == want && (want == 0 || oldest > 0)
		},
			"a lag of %d messages", want); e != nil {
			return fmt.Errorf("%w; it says %d, the oldest %s (%v)", e, messages, oldest, err)
		}
		return nil
	}
	if err := is(n); err != nil {
		return "", err
	}
	before := oldest
	for want := int64(n); want > 0; want-- {
		var m *message.Message
		select {
		case m = <-ch:
		case <-time.After(r.b.Patience):
			return "", fmt.Errorf("no message came; %d are left", want)
		}
		if want == 5 {
			if err := is(want); err != nil {
				return "", err
			}
		}
		m.Ack()
	}
	if err := is(0); err != nil {
		return "", err
	}
	return figuresOf("10, then 5, then 0 messages; the oldest %s", before.Round(time.Millisecond)), nil
}
