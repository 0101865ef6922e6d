package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/outbox"
)

// A connection makes sessions with the server: the first when it is asked for
// one, another when that has broken. It has no goroutine while there is none.
// While the server is away, callers are told so at once, and one of them tries
// again when a growing pause is over.
type connection struct {
	at  *endpoint
	log *slog.Logger

	mu      sync.Mutex
	closed  bool
	now     *session
	dialing *attempt
	down    error // why there was none when it was last tried
	next    time.Time
	pauses  *backoff.ExponentialBackOff
	live    sync.WaitGroup // goroutines of attempts and sessions
}

type attempt struct {
	done chan struct{}
	s    *session
	err  error
}

func newConnection(at *endpoint, log *slog.Logger) *connection {
	return &connection{at: at, log: log.With("server", at.where),
		pauses: &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.5,
			Multiplier: 2, MaxInterval: 5 * time.Second}}
}

// session gives the present session, or makes one. Its error wraps
// outbox.ErrUnavailable, or is that of ctx, or ErrClosed.
func (c *connection) session(ctx context.Context) (*session, error) {
	c.mu.Lock()
	switch {
	case c.closed:
		c.mu.Unlock()
		return nil, ErrClosed
	case c.now != nil && !c.now.ended():
		defer c.mu.Unlock()
		return c.now, nil
	case c.dialing == nil && c.down != nil && time.Now().Before(c.next):
		defer c.mu.Unlock()
		return nil, c.down
	}
	a := c.dialing
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		c.dialing = a
		c.live.Go(func() { c.dial(a) })
	}
	c.mu.Unlock()
	select {
	case <-a.done:
		return a.s, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *connection) dial(a *attempt) {
	ctx, cancel := context.WithTimeout(context.Background(), c.at.limit)
	defer cancel()
	a.s, a.err = open(ctx, c.at, c.log)

	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(a.done)
	c.dialing = nil
	switch {
	case a.err != nil:
		a.err = fmt.Errorf("%w: %w", outbox.ErrUnavailable, c.at.whyNot(a.err))
		if c.down == nil && !c.closed {
			c.log.Warn("RabbitMQ cannot be reached; it is tried again", "error", a.err)
		}
		c.down, c.next = a.err, time.Now().Add(c.pauses.NextBackOff())
		return
	case c.closed:
		a.s.cut()
		a.s, a.err = nil, ErrClosed
		return
	}
	if c.down != nil {
		c.log.Info("connected to RabbitMQ again")
	}
	c.now, c.down = a.s, nil
	c.pauses.Reset()
	c.live.Go(func() { a.s.watch(c.isClosed) })
}

// holdOff keeps new sessions from being made for a moment.
func (c *connection) holdOff(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = fmt.Errorf("%w: %w", outbox.ErrUnavailable, cause)
	c.next = time.Now().Add(blockedPause)
}

// blockedPause is how long nobody tries whether an alarm is over, where no session
// is left that would be told.
const blockedPause = time.Second

func (c *connection) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// close says goodbye to the server within patience, and then hangs up. The
// goroutines of the connection have ended when it returns.
func (c *connection) close(patience time.Duration) {
	c.mu.Lock()
	c.closed = true
	s := c.now
	c.mu.Unlock()
	if s != nil {
		s.goodbye(patience)
	}
	c.live.Wait()
}

// A session is one connection with the server, until it breaks.
type session struct {
	at   *endpoint
	wire *wire
	conn *amqp.Connection
	log  *slog.Logger

	blocked atomic.Pointer[string] // the server's reason not to take messages
	losing  chan *amqp.Error
	blocks  chan amqp.Blocking
	over    chan struct{} // closed by watch
	why     error         // set before over is closed

	mu       sync.Mutex
	finished bool
	running  sync.WaitGroup
}

// open makes a session. amqp091-go's handshake knows no context: cutting the
// wire ends it.
func open(ctx context.Context, at *endpoint, log *slog.Logger) (*session, error) {
	w, config, err := at.dial(ctx)
	if err != nil {
		return nil, err
	}
	late := context.AfterFunc(ctx, w.cut)
	conn, err := amqp.Open(w, config)
	if !late() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		w.cut()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	s := &session{at: at, wire: w, conn: conn, log: log, over: make(chan struct{})}
	s.losing = conn.NotifyClose(make(chan *amqp.Error, 1))
	s.blocks = conn.NotifyBlocked(make(chan amqp.Blocking, 8))
	return s, nil
}

// watch notes what the server says of the connection as a whole, until it ends.
func (s *session) watch(stopped func() bool) {
	defer func() {
		s.mu.Lock()
		s.finished = true
		s.mu.Unlock()
		s.running.Wait()
	}()
	blocks := s.blocks
	for {
		select {
		case b, ok := <-blocks:
			switch {
			case !ok:
				blocks = nil
			case b.Active:
				s.blocked.Store(&b.Reason)
				s.log.Warn("RabbitMQ takes no messages: publishers are blocked", "reason", b.Reason)
			case s.blocked.Swap(nil) != nil:
				s.log.Info("RabbitMQ takes messages again")
			}
		case cause := <-s.losing:
			s.why = errors.New("the connection was closed")
			if cause != nil {
				s.why = tidy(cause)
			}
			close(s.over)
			s.wire.cut()
			s.wire.pumping.Wait()
			if !stopped() {
				s.log.Warn("the connection to RabbitMQ is lost; a new one is made", "error", s.why)
			}
			return
		}
	}
}

func (s *session) ended() bool { return s.conn.IsClosed() }

// cut hangs up.
func (s *session) cut() { s.wire.cut() }

// goodbye closes the connection as the protocol wants it, for at most patience.
func (s *session) goodbye(patience time.Duration) {
	if s.blocked.Load() != nil {
		s.cut() // it reads nothing
		return
	}
	late := time.AfterFunc(patience, s.cut)
	defer late.Stop()
	s.conn.Close()
}

// rpcTimeout bounds a request to the server, whatever its caller's deadline is.
const rpcTimeout = 10 * time.Second

// do runs a request of amqp091-go, none of which heeds a context.
func (s *session) do(ctx context.Context, request func() error) error {
	done := make(chan error, 1)
	s.request(func() { done <- request() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// open runs f on a new channel. The channel stays open if all went well and the
// caller was there to see it.
func (s *session) open(ctx context.Context, f func(*amqp.Channel) error) error {
	const (
		pending = iota
		opened
		abandoned
	)
	var state atomic.Int32
	err := s.do(ctx, func() error {
		ch, err := s.conn.Channel()
		if err != nil {
			return err
		}
		if err = f(ch); err != nil || !state.CompareAndSwap(pending, opened) {
			ch.Close()
		}
		return err
	})
	if err != nil && !state.CompareAndSwap(pending, abandoned) {
		return nil // opened in the very moment in which ctx ended
	}
	return err
}

// request runs one without waiting for it. A server that has not answered within
// rpcTimeout has gone: the connection is cut, and the request ends by that.
func (s *session) request(f func()) {
	late := time.AfterFunc(rpcTimeout, s.cut)
	s.spawn(func() {
		defer late.Stop()
		f()
	})
}

// spawn starts a goroutine that ends with the session, at the latest.
func (s *session) spawn(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		go f() // on a dead connection it ends at once
		return
	}
	s.running.Go(f)
}

// passively runs f on a channel of its own: RabbitMQ ends the channel of a
// request that it refuses.
func (s *session) passively(ctx context.Context, f func(*amqp.Channel) error) error {
	return s.do(ctx, func() error {
		ch, err := s.conn.Channel()
		if err != nil {
			return err
		}
		defer ch.Close()
		return f(ch)
	})
}

// lost is the error of what the end of the session has interrupted.
func (s *session) lost() error {
	select {
	case <-s.over:
		return fmt.Errorf("the connection to RabbitMQ as %s is lost: %w", s.at.where, s.why)
	default:
		return fmt.Errorf("the connection to RabbitMQ as %s is lost", s.at.where)
	}
}
