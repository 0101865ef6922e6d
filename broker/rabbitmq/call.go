package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"regexp"
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

func takesNothing(reason string) error { return fmt.Errorf("RabbitMQ takes no messages: %s", reason) }

// leaveGrace is what a healthy socket gets to take what was written for it in the
// moment in which a call's time was over.
const leaveGrace = 50 * time.Millisecond

// expired: what is still on its way may arrive; what has not left must not leave
// any more, so the connection is cut if there is such.
func (c *call) expired(cause error) bool {
	s := c.lane.s
	reason := s.blocked.Load()
	if reason != nil {
		cause = fmt.Errorf("%w: %w", takesNothing(*reason), cause)
	}
	silent := reason == nil && time.Since(c.began) >= time.Second && !s.wire.heardSince(c.began)
	if len(c.sent) > 0 && (silent || !s.wire.leaves(leaveGrace)) {
		if reason != nil {
			c.p.conn.holdOff(takesNothing(*reason)) // the next session would have to find that out again
		}
		s.cut()
		s.wire.pumping.Wait() // it knows how far it came
	}
	c.unanswered(cause)
	c.giveUpReady(cause)
	return len(c.sent) == c.answered
}

// broken: the channel or the whole connection has ended.
func (c *call) broken() bool {
	c.takeAnswers()
	var cause *amqp.Error
	select {
	case cause = <-c.lane.closed:
	case <-c.lane.s.over:
	}
	if cause != nil && cause.Server && !c.lane.s.ended() {
		c.lane.forget()
		c.p.lanes.forget(c.lane.s)
		c.channelEnded(cause)
		return false
	}
	s := c.lane.s
	s.cut()
	s.wire.pumping.Wait()
	<-s.over
	c.unanswered(s.lost())
	c.giveUpReady(s.lost())
	return false
}

// Texts of the channel exceptions of rabbit_channel.erl and rabbit_exchange.erl
// that a publishing may raise, with the exchange, or with size and limit.
var (
	namesExchange = regexp.MustCompile(`exchange '(.*)' in vhost`)
	tellsSize     = regexp.MustCompile(`message size (\d+) is larger than configured max size (\d+)`)
)

// channelEnded: RabbitMQ has ended the channel because of one message. What was
// sent behind it is thrown away unread; what was sent before may have been taken.
func (c *call) channelEnded(cause *amqp.Error) {
	culprit := -1
	m := namesExchange.FindStringSubmatch(cause.Reason)
	size := tellsSize.FindStringSubmatch(cause.Reason)
	for n := c.answered; n < len(c.sent) && culprit < 0; n++ {
		i := int(c.sent[n].i)
		payload, _ := c.src.size(i)
		switch {
		case m != nil && (cause.Code == amqp.NotFound || cause.Code == amqp.AccessRefused):
			if c.p.route.exchange(c.src.topic(i)) == m[1] {
				culprit = n
			}
		case size != nil && fmt.Sprint(payload) == size[1]:
			culprit = n
		}
	}
	for n := c.answered; n < len(c.sent); n++ {
		i := c.sent[n].i
		exchange := c.p.route.exchange(c.src.topic(int(i)))
		switch {
		case culprit >= 0 && n > culprit: // NotAttempted
		case n != culprit:
			c.results[i] = outbox.Result{Status: outbox.Unknown, Err: &CallError{Exchange: exchange, Sent: true, Err: tidy(cause), passing: true}}
		case cause.Code == amqp.NotFound:
			c.refused(i, ErrMissing, true, "declare it (Topology), or correct the topic")
		case cause.Code == amqp.AccessRefused:
			c.refused(i, tidy(cause), true, "give this user write permission for the exchange")
		default:
			c.refused(i, tidy(cause), true, "publish less, or raise the server's max_message_size")
		}
	}
}

// unanswered: a message that was not sent is safe to send again, one that was
// may have been taken.
func (c *call) unanswered(cause error) {
	for n := c.answered; n < len(c.sent); n++ {
		s := c.sent[n]
		c.noAnswer(s.i, c.lane.s.wire.sentTo(s.position), cause)
	}
}

// giveUpReady says why what could have been sent was not.
func (c *call) giveUpReady(cause error) {
	for _, i := range c.ready {
		c.noAnswer(i, false, cause)
	}
	c.ready = nil
}

func (c *call) noAnswer(i int32, sent bool, cause error) {
	cancelled := errors.Is(cause, context.Canceled)
	status := outbox.Passing
	switch {
	case sent:
		status = outbox.Unknown
	case cancelled:
		status = outbox.NotAttempted
	}
	c.results[i] = outbox.Result{Status: status, Err: &CallError{
		Exchange: c.p.route.exchange(c.src.topic(int(i))), Sent: sent, Err: cause, passing: cancelled}}
}
