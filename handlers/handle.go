package handlers

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/wirename"
)

// Option changes the router's defaults for one handler.
type Option func(*handler)

// WithRetry sets the handler's own retry policy.
func WithRetry(cfg RetryConfig) Option { return func(h *handler) { h.retry = cfg } }

// WithTimeout sets the deadline of each of the handler's attempts; NoTimeout
// sets none.
func WithTimeout(timeout time.Duration) Option { return func(h *handler) { h.timeout = timeout } }

// AcceptFrom lets the handler have events of older schema versions, down to
// oldest, decoded into T as they are: right where the changes since only added
// members that may be missing. The event keeps its own SchemaVersion.
func AcceptFrom(oldest int) Option { return func(h *handler) { h.oldest = oldest } }

// WithDedup has the router remember in store, as DedupBy does, what a handler of
// Handle has handled, instead of in the inbox in Postgres: for effects that are
// not in Postgres, where the memory need not be either (redisstream.NewDedup). A
// claim in store must last longer than the handler's RetryConfig.MaxElapsed.
//
// The inbox knows nothing of such a handler then, its poisonings neither: that a
// message was given up is known to this process only, so that one which comes again
// to another is handled again. Changing from the inbox to a store, or back, handles
// again what is delivered again. HandleTx, whose record is part of its transaction,
// refuses it.
func WithDedup(store DedupStore) Option {
	return func(h *handler) { h.store, h.hasStore = store, true }
}

// handler is one registration. It is not changed once Run has begun.
type handler struct {
	name      string
	topic     string
	eventType string
	version   int // of T
	oldest    int // that is decoded into T
	inTx      bool
	retry     RetryConfig
	timeout   time.Duration
	store     DedupStore // of WithDedup
	hasStore  bool       // else the inbox remembers

	call  func(ctx context.Context, e events.DomainEvent) error
	chain message.HandlerFunc

	running atomic.Int64 // deliveries in the chain
}

// Handle has fn called at least once for every event of T's type that arrives on
// its topic: again after a crash between its return and the record of it, and
// when the same event is delivered twice at once. An event that it has
// handled is not handed to it again; the inbox remembers, or the store of WithDedup.
// Use HandleTx where its effects are in Postgres.
//
// name identifies the handler in the inbox, in the poison queue and in replays:
// unique among all consumers of the topic, and kept for ever, since a new name
// handles again what is delivered again. It has letters, digits and ._:/- .
//
// fn's ctx ends with the attempt's timeout, and carries the event's correlation:
// what is published under it is caused by e. fn's error, or panic, is retried
// (Config.Retry), then the message is poisoned, for this handler only. See
// Permanent and RetryAfter. Handlers of one event run side by side, each with
// data of its own.
//
// T is the struct of the event, by value. Events of a newer version than T's are
// held; those of an older one are poisoned unless AcceptFrom allows them: versions
// grow with incompatible changes, and data read into the wrong shape would take
// effect silently.
//
// Handle panics with a *[WiringError] that names all faults: a name taken, a nil
// fn, a T that is a pointer, an interface or a struct that goes by the name of an
// event it embeds, a router whose Run has begun.
func Handle[T events.Payload](r *Router, name string, fn func(ctx context.Context, e events.Event[T]) error, opts ...Option) {
	add[T](r, &handler{name: name}, fn == nil, opts, func(ctx context.Context, e events.Event[T]) error {
		return fn(ctx, e)
	})
}

// HandleTx is Handle for a handler whose effects are in the database of the
// inbox: it writes them through tx, and they are committed together with the
// record that the event is handled. They happen once, whatever is delivered twice.
//
// The transaction is the router's to end: fn returns nil to commit it, an error
// to roll it back. Savepoints (tx.Begin, pgx.BeginFunc) are fn's own. Each attempt
// has a transaction of its own. fn should not take further connections from the
// pool: with as many handlers as connections nobody would get one.
func HandleTx[T events.Payload](r *Router, name string, fn func(ctx context.Context, tx pgx.Tx, e events.Event[T]) error, opts ...Option) {
	add[T](r, &handler{name: name, inTx: true}, fn == nil, opts, func(ctx context.Context, e events.Event[T]) error {
		return fn(ctx, TxFrom(ctx), e)
	})
}

func add[T events.Payload](r *Router, h *handler, isNil bool, opts []Option, call func(context.Context, events.Event[T]) error) {
	t := reflect.TypeFor[T]()
	var faults []error
	name, err := wirename.Check(t)
	if err != nil {
		faults = append(faults, err)
	}
	h.eventType, h.version, h.oldest = name.EventType, name.Version, name.Version
	if isNil {
		faults = append(faults, errors.New("the function is nil: pass the handler itself"))
	}
	h.call = func(ctx context.Context, e events.DomainEvent) error {
		typed := e
		typed.SchemaVersion = h.version // admitted before
		event, err := events.Typed[T](typed)
		if err != nil {
			return Permanent(err) // it will not fit at the next attempt either
		}
		event.SchemaVersion = e.SchemaVersion
		return call(events.ContextHandling(ctx, e), event)
	}
	if r == nil {
		faults = append(faults, errors.New("the router is nil: make one by NewRouter"))
	} else {
		h.retry, h.timeout = r.cfg.Retry, r.cfg.Timeout
		for _, opt := range opts {
			opt(h)
		}
		h.retry.setDefaults()
		setDefault(&h.timeout, 10*time.Second)
		faults = append(faults, h.faults()...)
		if len(faults) == 0 {
			faults = append(faults, r.add(h)...)
		}
	}
	if len(faults) > 0 {
		panic(&WiringError{Handler: h.name, GoType: t.String(), Err: errors.Join(faults...)})
	}
}

var handlerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$`)

func (h *handler) faults() (faults []error) {
	if !handlerName.MatchString(h.name) {
		faults = append(faults, errors.New("the name must be 1 to 128 letters, digits and ._:/- and begin with a letter or a digit: it is stored, and travels in headers"))
	}
	if strings.HasPrefix(h.name, "postbus.") {
		faults = append(faults, errors.New("names that begin with postbus. are reserved: choose another"))
	}
	if h.oldest < 1 || h.oldest > h.version {
		faults = append(faults, fmt.Errorf("AcceptFrom(%d): use a version from 1 to the type's own, %d", h.oldest, h.version))
	}
	switch {
	case h.hasStore && h.inTx:
		faults = append(faults, errors.New("WithDedup: HandleTx records what it has handled in the transaction of its effects, and a second memory could only contradict it: leave WithDedup out, or use Handle"))
	case h.hasStore && h.store == nil:
		faults = append(faults, errors.New("WithDedup: the store is nil: make one, by redisstream.NewDedup for example, or leave WithDedup out for the inbox"))
	}
	faults = append(faults, h.retry.faults("WithRetry")...)
	return append(faults, timeoutFaults("WithTimeout", h.timeout)...)
}

// admit decides by the event's schema version.
func (h *handler) admit(e *events.DomainEvent, hold time.Duration) error {
	switch {
	case e.SchemaVersion > h.version:
		return &PostponedError{After: hold, Err: fmt.Errorf("%w: %s is version %d of %s and handler %q knows %d: it is held until this program is deployed anew",
			ErrFutureVersion, e.EventID, e.SchemaVersion, e.EventType, h.name, h.version)}
	case e.SchemaVersion < h.oldest:
		return Permanent(fmt.Errorf("event %s is version %d of %s and handler %q knows %d: upcast it, or allow it by AcceptFrom if the changes only added members, and replay it",
			e.EventID, e.SchemaVersion, e.EventType, h.name, h.version))
	}
	return nil
}
