package handlers

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// subscription is the router's one subscription to a topic. To Watermill's Router
// it is a message.Subscriber, which stands between it and the user's: Watermill
// would close that one, and would cancel the contexts of the messages that are
// being handled as soon as a stop begins.
type subscription struct {
	router   *Router
	topic    string
	in       <-chan *message.Message
	life     context.Context // of the user's subscription and its messages
	cancel   context.CancelFunc
	stopping <-chan struct{}
	stop     context.CancelFunc // stops the whole router

	handle   message.HandlerFunc
	inFlight sync.WaitGroup // messages handed on and not settled
	ended    atomic.Bool    // by itself
}

// Subscribe is called by Watermill's Router.
func (s *subscription) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	go s.pump(out)
	return out, nil
}

// Close leaves the user's subscriber open.
func (s *subscription) Close() error { return nil }

func (s *subscription) pump(out chan<- *message.Message) {
	defer close(out)
	for {
		select {
		case <-s.stopping:
			s.drain()
			return
		case msg, ok := <-s.in:
			if !ok {
				select {
				case <-s.stopping:
				default: // it must not look as if all were well
					s.ended.Store(true)
					s.stop()
				}
				s.drain()
				return
			}
			if msg == nil {
				continue
			}
			select {
			case <-s.stopping: // both were ready
				msg.Nack()
				continue
			default:
			}
			s.inFlight.Add(1)
			out <- msg // Watermill reads until out is closed
		}
	}
}

// drain waits for what is in flight, and then ends the subscription: a subscriber
// whose context ends first drops the acks that come later.
func (s *subscription) drain() {
	settled := make(chan struct{})
	go func() { s.inFlight.Wait(); close(settled) }()
	timeout := time.NewTimer(s.router.cfg.CloseTimeout)
	defer timeout.Stop()
	select {
	case <-settled:
	case <-timeout.C:
	}
	s.cancel()
	s.giveBackRest()
}

func (s *subscription) giveBackRest() {
	if !giveBack(s.in) {
		s.router.cfg.Logger.Warn("the subscriber did not end its subscription", "topic", s.topic)
	}
}

// giveBack nacks what a subscriber still offers after its context has ended:
// some can't stop before somebody has taken it. It returns false if that does not
// end within CloseGrace.
func giveBack(in <-chan *message.Message) bool {
	grace := time.NewTimer(CloseGrace)
	defer grace.Stop()
	for {
		select {
		case msg, open := <-in:
			if !open {
				return true
			}
			if msg != nil {
				msg.Nack()
			}
		case <-grace.C:
			return false
		}
	}
}

// consume is the Watermill handler. It acks and nacks by itself, so that the
// end of a stop finds all messages settled.
func (s *subscription) consume(msg *message.Message) error {
	c := &s.router.counters
	c.messages.Add(1)
	c.inFlight.Add(1)
	defer s.inFlight.Done()
	defer c.inFlight.Add(-1)

	// The subscriber's own context ends when it takes the message back; ours when
	// the stop runs out of patience. Not every subscriber ties the two together.
	outer := msg.Context()
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	msg.SetContext(withDelivery(ctx, &delivery{Delivery: Delivery{Topic: s.topic}, stopping: s.stopping}))
	_, err := s.handle(msg)
	msg.SetContext(outer)
	if err != nil {
		c.nacked.Add(1)
		msg.Nack()
		return err
	}
	c.acked.Add(1)
	msg.Ack()
	return nil
}

// dispatch decodes a message and delivers it.
func (s *subscription) dispatch(msg *message.Message) ([]*message.Message, error) {
	return nil, s.router.dispatch(s.topic, s.stopping, msg)
}

// joinPostponed is the error of a message that several handlers could not settle.
func joinPostponed(errs []error) error {
	err := errors.Join(errs...)
	if err == nil {
		return nil
	}
	joined := &PostponedError{Err: err}
	for _, err := range errs {
		var one *PostponedError
		if errors.As(err, &one) {
			joined.After = max(joined.After, one.After)
		}
	}
	return joined
}
