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

// What a call that did not go well says of its messages.

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
