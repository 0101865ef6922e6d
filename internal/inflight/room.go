package inflight

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

var (
	// ErrClosed: Offer or Add after Close was called.
	ErrClosed = errors.New("inflight: the room is closed")

	// ErrCloseTimeout is the cancel cause of a message's context when its handler
	// took longer than Config.CloseTimeout to finish. An adapter that has a
	// sentinel of its own gives it as Config.CloseCause.
	ErrCloseTimeout = errors.New("inflight: the handler has not come back in time to close")
)

// A Delivery is one message of the broker on its way to a handler. The room
// keeps Token for the adapter and never looks into it.
type Delivery[T any] struct {
	// Key is what order is kept by. Deliveries without one are unordered: each is
	// by itself.
	Key string
	// Size in bytes, for Config.MaxBufferedBytes.
	Size int
	// Token is what the adapter needs to build the message, and to acknowledge it.
	Token T
}

// A Verdict is what becomes of a message that was nacked.
type Verdict uint8

const (
	// Retry: it is handed over again after a pause, and its key waits for it.
	Retry Verdict = iota
	// GiveBack: it is reported as GivenBack, and its key goes on with the next one.
	GiveBack
	// GiveBackKey: it and all of its key that is in the room are reported as
	// GivenBack, in order.
	GiveBackKey
)

// An Outcome is how a delivery has left the room.
type Outcome uint8

const (
	// Acked: it was handled.
	Acked Outcome = iota
	// GivenBack: it was not handled, or its handler said no, and nobody here will
	// try it again.
	GivenBack
)

// A Result tells the adapter what became of a delivery.
type Result[T any] struct {
	Token   T
	Outcome Outcome
	Handed  bool // it has been with a handler at least once
}

// Config of a Room: Build is required, the rest has defaults.
type Config[T any] struct {
	// Build makes the message for a delivery: a new one for every attempt (the
	// first is 1), since handlers may change what they get. The room sets its
	// context. Called by several goroutines at once, never for one delivery at a time
	// by two. Required.
	Build func(token T, attempt int) *message.Message

	// Nacked says what becomes of a message that was nacked; attempt counts from
	// 1. It is called with the room's lock held: it decides, and neither waits nor
	// calls the room. Nil means Retry always. Not asked while the room closes, nor for
	// what has been withdrawn: that is given back.
	Nacked func(token T, attempt int) Verdict

	// MaxInFlight bounds what is with the handlers at once. Defaults to 64.
	MaxInFlight int

	// MaxBuffered bounds the deliveries in the room, those in flight included.
	// Defaults to 1,024, and never less than MaxInFlight.
	MaxBuffered int

	// MaxBufferedBytes bounds the sum of their sizes. Defaults to 64 MiB.
	MaxBufferedBytes int

	// NackDelay is the pause before a nacked message is handed over again; it
	// doubles with every further nack, up to MaxNackDelay. Default to 100 ms and 30 s.
	NackDelay    time.Duration
	MaxNackDelay time.Duration

	// CloseTimeout is how long Close waits for the handlers in flight before it
	// cancels their contexts, CloseGrace how long it then waits still. Default to
	// 30 s, and to 2 s or CloseTimeout if that is less.
	CloseTimeout time.Duration
	CloseGrace   time.Duration

	// CloseCause is the cause of that cancellation. Defaults to ErrCloseTimeout.
	CloseCause error

	// Outlet is a channel that this room shares with others; nil for one of its own,
	// which Close closes.
	Outlet *Outlet
}

// A Room holds deliveries between a broker and its handlers. Safe for use by
// several goroutines; what one of them offers is in order. It starts goroutines
// when something is offered, at most MaxInFlight, which Close ends.
type Room[T any] struct {
	cfg   Config[T]
	base  context.Context
	ended *liveContext          // of every message that is settled and whose context nobody had asked for
	out   chan *message.Message // the outlet's

	changed   chan struct{} // cap 1: there are results
	abandoned chan struct{} // closed: whoever still waits for a handler goes home

	mu      sync.Mutex
	work    sync.Cond // for idle attendants
	moved   sync.Cond // for Offer, AwaitRoom, Await and Close
	watched int       // who waits for moved

	lanes  map[string]*lane[T]
	spare  *lane[T] // lanes for use again
	fresh  queue[T] // heads of their lanes when they were offered
	next   queue[T] // those that became it, or come again after a pause
	paused pauses[T]
	all    list[T] // whatever is neither settled nor lost, in the order of offering
	seq    uint64

	count, bytes int            // of all
	flying       []*delivery[T] // with the handlers or on the way to them, lost ones too
	unattended   []*delivery[T] // of these, those that nobody waits for as yet
	results      []Result[T]

	attendants int  // goroutines
	idle       int  // of these, those with nothing to do
	waking     bool // one is on its way
	batch      int  // how many messages an attendant takes

	closing bool // nothing is handed over any more
	leaving bool // attendants go home
	drained bool // all are gone
	ownOut  bool
	left    []T // what Close has abandoned
}

// New makes a room whose messages' contexts have the values of base; its
// cancellation reaches them not. It panics without Config.Build.
func New[T any](base context.Context, cfg Config[T]) *Room[T] {
	if cfg.Build == nil {
		panic("inflight.New: Config.Build is nil")
	}
	orDefault(&cfg.MaxInFlight, 64)
	orDefault(&cfg.MaxBuffered, 1024)
	cfg.MaxBuffered = max(cfg.MaxBuffered, cfg.MaxInFlight)
	orDefault(&cfg.MaxBufferedBytes, 64<<20)
	orDefault(&cfg.NackDelay, 100*time.Millisecond)
	orDefault(&cfg.MaxNackDelay, max(30*time.Second, cfg.NackDelay))
	orDefault(&cfg.CloseTimeout, 30*time.Second)
	orDefault(&cfg.CloseGrace, min(2*time.Second, cfg.CloseTimeout))
	if cfg.CloseCause == nil {
		cfg.CloseCause = ErrCloseTimeout
	}
	own := cfg.Outlet == nil
	if own {
		cfg.Outlet = NewOutlet(cfg.MaxInFlight)
	}
	r := &Room[T]{
		cfg:       cfg,
		base:      context.WithoutCancel(base),
		out:       cfg.Outlet.out,
		ownOut:    own,
		changed:   make(chan struct{}, 1),
		abandoned: make(chan struct{}),
		lanes:     make(map[string]*lane[T]),
		batch:     1,
	}
	r.ended = newLiveContext(r.base)
	r.ended.cancel(nil)
	r.work.L, r.moved.L = &r.mu, &r.mu
	return r
}

func orDefault[V int | time.Duration](v *V, value V) {
	if *v <= 0 {
		*v = value
	}
}

// Out is the channel for the consumer. Close closes it.
func (r *Room[T]) Out() <-chan *message.Message { return r.out }

// Stats is a moment's count.
type Stats struct {
	Buffered int // deliveries in the room: neither settled nor lost
	Bytes    int // their sizes
	InFlight int // messages with the handlers, or in the channel; lost ones too
	Paused   int // nacked, and waiting to be handed over again
}

// Stats counts what is in the room.
func (r *Room[T]) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Stats{Buffered: r.count, Bytes: r.bytes, InFlight: len(r.flying), Paused: len(r.paused.heap)}
}

// Each calls f for every delivery that is neither settled nor lost, in the
// order of offering; handed says that it is with a handler, or in the channel.
// f is called with the room's lock held and must not call the room: to keep
// them fresh at the broker, gather the tokens first.
func (r *Room[T]) Each(f func(token T, handed bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d := r.all.first; d != nil; d = d.after {
		f(d.Token, d.state == handed)
	}
}

// Changed signals that Take has something to give: once for any number of
// results. It is closed when the room has been closed and drained; take once
// more then.
func (r *Room[T]) Changed() <-chan struct{} { return r.changed }

// Take appends to into what has become of deliveries since the last Take, and
// empties the list. Nothing is reported twice, and nothing of what Lose has taken
// out since. Results of one key are in order.
func (r *Room[T]) Take(into []Result[T]) []Result[T] {
	r.mu.Lock()
	defer r.mu.Unlock()
	into = append(into, r.results...)
	clear(r.results)
	r.results = r.results[:0]
	return into
}

// report is called with the lock held.
func (r *Room[T]) report(d *delivery[T], o Outcome) {
	r.results = append(r.results, Result[T]{Token: d.Token, Outcome: o, Handed: d.attempt > 0})
	if len(r.results) == 1 && !r.drained {
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}
}

// notify tells those who wait for room, for handlers or for the end to look again.
func (r *Room[T]) notify() {
	if r.watched > 0 {
		r.moved.Broadcast()
	}
}

// wait waits for notify, with the lock held; the caller looks again. It returns
// ctx's error if ctx is over.
func (r *Room[T]) wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.moved.Broadcast()
	})
	r.watched++
	r.moved.Wait()
	r.watched--
	stop()
	return nil
}
