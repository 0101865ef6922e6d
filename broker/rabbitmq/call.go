package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/outbox"
)

// A call is the work of one Publish or PublishBatch. It has a channel for itself,
// so that delivery tags, returns and the channel's end are about its messages
// and nobody else's. The messages of one topic and key form a chain, of which
// only the first that is not confirmed may be on its way: RabbitMQ may refuse it
// (a full queue, no route) and take the next. Chains do not wait for each other.
type call struct {
	p       *Publisher
	src     source
	results []outbox.Result

	next    []int32 // next[i]: the message behind i in its chain; -1 at the end
	ready   []int32 // heads of chains, to be sent in this order
	pending int     // messages that are not settled and whose chain is not broken

	lane     *lane
	sent     []sending // by delivery tag, from lane.next on
	answered int       // of sent: those confirmed
	returned int       // where in sent to look for the next return: they come in order
	began    time.Time
	body     amqp.Publishing
}

// A sending is a message on its way.
type sending struct {
	i        int32
	position uint64 // of the wire before it
	returned bool
}

// sortOut chains the messages up. What is certain to fail is left out and so is,
// of its key, everything behind it.
func (c *call) sortOut() {
	type keyOfTopic struct{ topic, key string }
	n := c.src.len()
	c.next = make([]int32, n)
	c.ready = make([]int32, 0, n)
	last := make(map[keyOfTopic]int32, n)
	const broken = -1
	for i := range n {
		c.next[i] = -1
		key, ordered := c.src.key(i)
		k := keyOfTopic{c.src.topic(i), key}
		before, some := last[k]
		if ordered && some && before == broken {
			continue
		}
		if err := c.unsendable(i); err != nil {
			c.results[i] = outbox.Result{Status: outbox.Permanent, Err: err}
			if ordered {
				last[k] = broken
			}
			continue
		}
		c.pending++
		switch {
		case !ordered:
			c.ready = append(c.ready, int32(i))
			continue
		case some:
			c.next[before] = int32(i)
		default:
			c.ready = append(c.ready, int32(i))
		}
		last[k] = int32(i)
	}
}

func (c *call) unsendable(i int) error {
	exchange := c.p.route.exchange(c.src.topic(i))
	invalid := func(reason string) error {
		return &InvalidMessageError{Exchange: exchange, MessageID: c.src.id(i), Reason: reason}
	}
	if reason := c.src.invalid(i); reason != "" {
		return invalid(reason)
	}
	if fault := nameFault(c.src.topic(i)); fault != "" && (c.p.route.name == "" || c.p.route.key == ByTopic) {
		return invalid(fmt.Sprintf("its topic %q %s", c.src.topic(i), fault))
	}
	if key := c.p.route.routingKey(c.src, i); len(key) > maxShort {
		return invalid(fmt.Sprintf("its routing key (%s) has %d bytes: AMQP has room for %d", c.p.route.key, len(key), maxShort))
	}
	payload, headers := c.src.size(i)
	if headers > maxHeaders {
		return &TooLargeError{Exchange: exchange, MessageID: c.src.id(i), Bytes: headers, MaxBytes: maxHeaders, Headers: true}
	}
	n := payload + headers - propertyBytes
	if n > c.p.limits.messageBytes {
		return &TooLargeError{Exchange: exchange, MessageID: c.src.id(i), Bytes: n, MaxBytes: c.p.limits.messageBytes}
	}
	if n > warnBytes {
		c.p.warnLarge(c.src.topic(i), n)
	}
	return nil
}

// maxHeaders: all properties go into one frame, which must not be longer than
// the server's frame_max.
const maxHeaders = frameSize - 64

func (p *Publisher) warnLarge(topic string, n int) {
	if _, before := p.warned.LoadOrStore(topic, true); !before {
		p.log.Warn("a message is larger than RabbitMQ is good at; larger ones of this topic are not told", "topic", topic, "bytes", n, "advised", warnBytes)
	}
}

func (c *call) run(ctx context.Context) {
	lane, err := c.p.lanes.take(ctx)
	if err != nil {
		c.giveUpReady(err)
		return
	}
	c.lane, c.began = lane, time.Now()
	c.body = amqp.Publishing{Headers: make(amqp.Table, 16), DeliveryMode: amqp.Persistent}
	if err := c.check(ctx); err != nil {
		c.giveUpReady(err)
		c.p.lanes.giveBack(lane, true)
		return
	}
	clean := c.exchange(ctx)
	lane.next += uint64(len(c.sent))
	c.p.lanes.giveBack(lane, clean)
}

// check looks once per connection whether an exchange is there: publishing to
// one that is not would end the channel, with all that is on it.
func (c *call) check(ctx context.Context) error {
	if c.p.route.kind == DefaultExchange {
		return nil
	}
	var missing map[string]error
	ready := c.ready[:0]
	for _, i := range c.ready {
		exchange := c.p.route.exchange(c.src.topic(int(i)))
		err, known := missing[exchange]
		if !known {
			err = c.p.lanes.checkExchange(ctx, c.lane.s, exchange)
			if err != nil && !errors.Is(err, ErrMissing) {
				return err
			}
			if err != nil {
				if missing == nil {
					missing = make(map[string]error)
				}
				missing[exchange] = err
			}
		}
		if err != nil {
			c.refused(i, ErrMissing, true, "declare it (Topology), or correct the topic")
			continue
		}
		ready = append(ready, i)
	}
	c.ready = ready
	return nil
}

// exchange sends what may be sent and takes the answers, until all messages are
// settled or ctx is done. It returns false if the channel is no good any more.
func (c *call) exchange(ctx context.Context) bool {
	for c.answered < len(c.sent) || len(c.ready) > 0 {
		room, err := c.send(ctx)
		switch {
		case err != nil:
			return c.broken()
		case c.answered == len(c.sent) && len(c.ready) == 0:
			return true
		}
		select {
		case r, ok := <-c.lane.returns:
			if ok {
				c.noteReturn(r)
			} else {
				c.lane.returns = nil
			}
		case answer, ok := <-c.lane.confirms:
			if !ok {
				return c.broken()
			}
			c.settle(answer)
		case <-room:
		case <-ctx.Done():
			c.takeAnswers()
			if c.answered == len(c.sent) && len(c.ready) == 0 {
				return true
			}
			return c.expired(ctx.Err())
		}
		if !c.takeAnswers() {
			return c.broken()
		}
	}
	return true
}

// takeAnswers takes what has come without waiting.
func (c *call) takeAnswers() (open bool) {
	for {
		select {
		case answer, ok := <-c.lane.confirms:
			if !ok {
				return false
			}
			c.settle(answer)
		default:
			return true
		}
	}
}

// send sends chains' heads as long as there is room for them. If there is none,
// room is closed when there may be some again, or nil if an answer must come
// first.
func (c *call) send(ctx context.Context) (room <-chan struct{}, err error) {
	if reason := c.lane.s.blocked.Load(); reason != nil {
		c.giveUpReady(takesNothing(*reason)) // what is on its way already is waited for
		return nil, nil
	}
	done := 0
	defer func() { c.ready = c.ready[done:] }()
	for _, i := range c.ready {
		if len(c.sent)-c.answered >= c.p.limits.unconfirmed || ctx.Err() != nil {
			return nil, nil
		}
		if room := c.lane.s.wire.backlog(c.p.limits.backlog); room != nil {
			return room, nil
		}
		clear(c.body.Headers)
		c.src.fill(&c.body, int(i))
		position := c.lane.s.wire.position()
		_, err := c.lane.ch.PublishWithDeferredConfirm(c.p.route.exchange(c.src.topic(int(i))),
			c.p.route.routingKey(c.src, int(i)), true, false, c.body)
		if err != nil {
			return nil, err // the channel is closed, or the wire is broken
		}
		c.sent = append(c.sent, sending{i: i, position: position})
		done++
	}
	return nil, nil
}

// noteReturn finds the message that was returned. Returns come in the order of
// the messages, each before the message's confirmation.
func (c *call) noteReturn(r amqp.Return) {
	for n := max(c.returned, c.answered); n < len(c.sent); n++ {
		s := &c.sent[n]
		i := int(s.i)
		// An event may go to two places in one call, and be returned by one.
		if c.src.id(i) == r.MessageId && c.p.route.exchange(c.src.topic(i)) == r.Exchange && c.p.route.routingKey(c.src, i) == r.RoutingKey {
			s.returned, c.returned = true, n+1
			return
		}
	}
}

// settle takes the confirmation of the oldest message: amqp091-go puts them
// into order.
func (c *call) settle(answer amqp.Confirmation) {
	for waiting := c.lane.returns != nil; waiting; {
		select { // a return that belongs to it is here already
		case r, ok := <-c.lane.returns:
			if ok {
				c.noteReturn(r)
			} else {
				c.lane.returns, waiting = nil, false
			}
		default:
			waiting = false
		}
	}
	n := int(answer.DeliveryTag - c.lane.next)
	if n != c.answered || n >= len(c.sent) {
		return // cannot be: confirmations are in order
	}
	s := &c.sent[n]
	c.answered++
	switch {
	case s.returned:
		c.refused(s.i, ErrUnroutable, true, "bind a queue for this routing key, or publish to where there is one")
	case !answer.Ack:
		c.refused(s.i, ErrNacked, false, "it is taken again when the queue has room: see which queue behind the exchange is full")
	default:
		c.results[s.i] = outbox.Result{Status: outbox.Done}
		if behind := c.next[s.i]; behind >= 0 {
			c.ready = append(c.ready, behind)
		}
	}
}

func (c *call) refused(i int32, reason error, permanent bool, wayOut string) {
	status := outbox.Passing
	if permanent {
		status = outbox.Permanent
	}
	c.results[i] = outbox.Result{Status: status, Err: &RefusedError{
		Exchange: c.p.route.exchange(c.src.topic(int(i))), RoutingKey: c.p.route.routingKey(c.src, int(i)),
		MessageID: c.src.id(int(i)), Reason: reason, permanent: permanent, wayOut: wayOut}}
}
