package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/outbox"
)

// lanes are the channels of a Publisher: as many as there are calls at once, up
// to a limit, each lent to one call at a time. Before the first is lent on a new
// connection, the topology is declared or checked.
type lanes struct {
	conn   *connection
	route  router
	topo   *preparation
	limits limits
	slots  chan struct{} // one for every call that has a lane
	turn   chan struct{} // one request about the topology at a time

	mu    sync.Mutex
	of    *session // what is below is about it
	free  []*lane
	known map[string]bool // exchanges that are there
}

// A lane is a channel in confirm mode.
type lane struct {
	s        *session
	ch       *amqp.Channel
	confirms chan amqp.Confirmation
	returns  chan amqp.Return
	closed   chan *amqp.Error
	next     uint64 // delivery tag of the next message
}

func newLanes(conn *connection, route router, t *topology, l limits) *lanes {
	return &lanes{conn: conn, route: route, topo: newPreparation(t), limits: l,
		slots: make(chan struct{}, l.channels), turn: make(chan struct{}, 1)}
}

// take lends a lane. Each one must come back by giveBack.
func (l *lanes) take(ctx context.Context) (*lane, error) {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	lane, err := l.find(ctx)
	if err != nil {
		<-l.slots
	}
	return lane, err
}

func (l *lanes) find(ctx context.Context) (*lane, error) {
	for again := true; ; again = false {
		s, err := l.conn.session(ctx)
		if err != nil {
			return nil, err
		}
		lane, err := l.findOn(ctx, s)
		if err == nil || !again || !s.ended() || ctx.Err() != nil {
			return lane, err
		}
		// It broke meanwhile, perhaps long ago and unnoticed.
	}
}

func (l *lanes) findOn(ctx context.Context, s *session) (*lane, error) {
	if err := l.topo.prepare(ctx, s); err != nil {
		return nil, err
	}
	if lane := l.pop(s); lane != nil {
		return lane, nil
	}
	return openLane(ctx, s, l.limits.unconfirmed)
}

func (l *lanes) pop(s *session) *lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now(s)
	for n := len(l.free); n > 0; n = len(l.free) {
		lane := l.free[n-1]
		l.free = l.free[:n-1]
		if lane.s == s && !lane.ch.IsClosed() {
			return lane
		}
	}
	return nil
}

// now forgets what was about an earlier session; mu is held.
func (l *lanes) now(s *session) {
	if l.of != s {
		l.of, l.free, l.known = s, nil, make(map[string]bool)
	}
}

// giveBack takes a lane back. One that is not clean has answers to come that
// would be taken for those of the next call, and is closed.
func (l *lanes) giveBack(lane *lane, clean bool) {
	switch {
	case lane.s.ended():
	case clean:
		l.mu.Lock()
		if l.of == lane.s {
			l.free = append(l.free, lane)
		}
		l.mu.Unlock()
	default:
		lane.forget()
	}
	<-l.slots
}

// checkExchange finds out whether an exchange is there, once per session. If it
// is not, the error wraps ErrMissing.
func (l *lanes) checkExchange(ctx context.Context, s *session, name string) error {
	known := func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.now(s)
		return l.known[name]
	}
	if known() {
		return nil
	}
	return inTurn(ctx, l.turn, func() error {
		if known() {
			return nil
		}
		if err := s.passively(ctx, func(ch *amqp.Channel) error {
			return ch.ExchangeDeclarePassive(name, l.route.kind.String(), true, false, false, false, nil)
		}); err != nil {
			return wrapMissing(exchangeText(name), err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.of == s {
			l.known[name] = true
		}
		return nil
	})
}

func wrapMissing(what string, err error) error {
	var refusal *amqp.Error
	switch {
	case errors.As(err, &refusal) && refusal.Code == amqp.NotFound:
		return fmt.Errorf("%s: %w", what, ErrMissing)
	case errors.As(err, &refusal) && refusal.Server:
		return fmt.Errorf("look for %s: %w", what, tidy(err))
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: look for %s: %w", outbox.ErrUnavailable, what, err)
}

// forget has exchanges looked for again: one has gone.
func (l *lanes) forget(s *session) {
	l.topo.forget()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == s {
		clear(l.known)
	}
}

func openLane(ctx context.Context, s *session, unconfirmed int) (*lane, error) {
	l := &lane{s: s, next: 1}
	err := s.open(ctx, func(ch *amqp.Channel) error {
		l.ch = ch
		l.closed = ch.NotifyClose(make(chan *amqp.Error, 1))
		// Nothing of a call waits in amqp091-go's reader, which serves all channels:
		// there is room for every confirmation, and a call reads returns all the time.
		l.confirms = ch.NotifyPublish(make(chan amqp.Confirmation, unconfirmed))
		l.returns = ch.NotifyReturn(make(chan amqp.Return, 64))
		return ch.Confirm(false)
	})
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil, err
	}
	return nil, fmt.Errorf("%w: open a channel to RabbitMQ as %s: %w", outbox.ErrUnavailable, s.at.where, tidy(err))
}

// forget closes the channel behind the caller's back, and reads to the end what
// the server still says on it.
func (l *lane) forget() {
	l.s.spawn(func() {
		for range l.confirms {
		}
	})
	if returns := l.returns; returns != nil {
		l.s.spawn(func() {
			for range returns {
			}
		})
	}
	l.s.request(func() { l.ch.Close() })
}
