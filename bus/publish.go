package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/wirename"
)

// ErrNotInTx is wrapped by a *[NotInTxError].
var ErrNotInTx = errors.New("the transaction is neither one of bus.InTx nor followed")

// NotInTxError refuses an event whose after-commit handlers could never be
// called, since the bus sees the commit of a transaction only if it has begun it
// ([InTx]) or follows it ([Follow]). Nothing has been appended.
type NotInTxError struct {
	EventType     string
	SchemaVersion int
	Handlers      []string // the after-commit handlers
}

func (e *NotInTxError) Error() string {
	return fmt.Sprintf("publish %s: %v, so that its after-commit handlers (%s) would not be called: begin the transaction with bus.InTx, or follow your own with bus.Follow and publish through the Tx that it returns, itself or a savepoint of it; nothing was appended",
		e.EventType, ErrNotInTx, strings.Join(e.Handlers, ", "))
}

// Unwrap gives ErrNotInTx.
func (e *NotInTxError) Unwrap() error { return ErrNotInTx }

var (
	errNoBus      = errors.New("publish: the bus is nil or empty: make one with bus.New")
	errNoContext  = errors.New("publish: the ctx is nil: pass the one that InTx or the handler was given")
	errNoTx       = errors.New("publish: the tx is nil: pass the transaction that your own rows are written in")
	errUnfinished = errors.New("publish: it did not return, because something in it panicked or ended the goroutine")
)

// Publish appends evs to the outbox, in their order and inside tx, and then calls
// their in-tx handlers, event by event. The events exist if and only if tx
// commits. All are appended before the first handler runs, so that what handlers
// publish stands behind them in the log. After-commit handlers run when [InTx],
// or the Commit of a followed [Tx], has committed.
//
// An event is a value or a pointer; options of one publication wrap it
// ([events.With]), and an envelope built by hand is one too ([events.Raw]; its
// data is decoded for typed handlers). All events are checked before anything is
// written, and all refusals come together: *[events.InvalidEventError],
// *[events.PayloadError] and their kin, *[WiringError], *[NotInTxError],
// *[DepthError], *[MetadataError]. What a handler returns comes as a *[HandlerError]; see
// [SubscribeInTx]. The other in-tx handlers of that event still run, to hear all
// objections at once, unless a failed statement has aborted the transaction or
// ctx has ended; later events of the call are not handed out.
//
// A Publish that returns an error has doomed the transaction of InTx, which will
// not commit even if fn returns nil. If that happened in a savepoint that is then
// rolled back (pgx.BeginFunc on tx), it is undone as well.
//
// tx may also be a transaction of the caller's own. Followed by [Follow], it is as
// good as one of InTx. If not, the caller must roll it back after an error, and no
// event may have after-commit handlers. Since we do not see the commit then, the
// relay is given a hint: it looks soon, and then less and less often.
//
// Publish with no events does nothing. It may be called by several goroutines,
// each with a tx of its own.
func (b *EventBus) Publish(ctx context.Context, tx pgx.Tx, evs ...events.Payload) error {
	switch {
	case b == nil || b.log == nil:
		return misused(ctx, errNoBus)
	case ctx == nil:
		return errNoContext
	case isNil(tx):
		return misused(ctx, errNoTx)
	case len(evs) == 0:
		return nil
	}
	if s := scopeOf(ctx, tx); s != nil {
		if t, ok := tx.(*Tx); ok { // handlers may not commit it
			tx = &followedTx{Tx: t.Tx, scope: s}
		}
		return b.publishIn(ctx, tx, s, evs)
	}
	// Somebody else's transaction: what handlers do in it is followed all the same,
	// until Publish returns.
	s := newScope(ctx, tx, borrowed)
	defer s.close()
	if err := b.publishIn(ctx, &followedTx{Tx: tx, scope: s}, s, evs); err != nil {
		return err
	}
	return s.doom()
}

// misused dooms the transaction that ctx belongs to: whoever drops this error
// means to have published.
func misused(ctx context.Context, err error) error {
	if ctx != nil {
		if s := frameOf(ctx).scope; s != nil && !s.closed.Load() {
			s.doomed(err)
		}
	}
	return err
}

// PublishAll is Publish for a slice of an aggregate's own event type, which Go
// does not spread into ...events.Payload:
//
//	err := bus.PublishAll(ctx, eventBus, tx, order.Events())
func PublishAll[E events.Payload](ctx context.Context, b *EventBus, tx pgx.Tx, evs []E) error {
	payloads := make([]events.Payload, len(evs))
	for i, e := range evs {
		payloads[i] = e
	}
	return b.Publish(ctx, tx, payloads...)
}

// publishIn dooms the scope unless all goes well; also when a handler ends the
// goroutine, or the log panics and the caller survives it.
func (b *EventBus) publishIn(ctx context.Context, tx pgx.Tx, s *scope, evs []events.Payload) error {
	err := errUnfinished
	defer func() {
		if err != nil {
			s.doomed(err)
		}
	}()
	err = b.publish(ctx, tx, s, evs)
	return err
}

func (b *EventBus) publish(ctx context.Context, tx pgx.Tx, s *scope, evs []events.Payload) error {
	if s.closed.Load() {
		return fmt.Errorf("publish %s: the tx was given to a function that has returned, and is no longer valid: publish before that", typeOf(evs[0]))
	}
	parent := s.chain
	if err := b.checkDepth(parent, evs[0]); err != nil {
		return err
	}
	envelopes, handled, err := b.prepare(ctx, s, evs)
	if err != nil {
		return err
	}
	if err := b.log.Append(ctx, tx, envelopes...); err != nil {
		return fmt.Errorf("publish %s: %w", envelopes[0].EventType, err)
	}
	s.appended(b.log, envelopes)
	s.hint()
	for _, o := range handled {
		for _, h := range o.route.afterCommit {
			s.announce(announcement{ctx: ctx, parent: parent, event: o, handler: h})
		}
	}
	for _, o := range handled {
		if err := b.handleInTx(ctx, tx, s, o); err != nil {
			return err
		}
	}
	return nil
}

// prepare makes envelopes of evs, and occurrences of those that have handlers. It
// reports all faults together.
func (b *EventBus) prepare(ctx context.Context, s *scope, evs []events.Payload) ([]events.DomainEvent, []*occurrence, error) {
	subscribed := b.subscribed.Load() // one state of the subscriptions for the whole call
	envelopes := make([]events.DomainEvent, 0, len(evs))
	var handled []*occurrence
	var faults []error
	metadata, err := b.contextMetadata(ctx, evs[0])
	if err != nil {
		faults = append(faults, err)
	}
	for _, p := range evs {
		e, err := events.New(ctx, p)
		if err != nil {
			faults = append(faults, fmt.Errorf("publish: %w", err))
			continue
		}
		if err := addMetadata(&e, metadata); err != nil {
			faults = append(faults, err)
			continue
		}
		envelopes = append(envelopes, e)
		name := wirename.Name{EventType: e.EventType, Version: e.SchemaVersion}
		payload := events.Unwrap(p)
		if t := reflect.TypeOf(payload); t == rawType {
			payload = nil
		} else if err := checkPublished(t, name); err != nil {
			faults = append(faults, err)
			continue
		}
		r := subscribed.route(name)
		if r == nil {
			continue
		}
		if s.owner == borrowed && len(r.afterCommit) > 0 {
			faults = append(faults, &NotInTxError{EventType: e.EventType, SchemaVersion: e.SchemaVersion, Handlers: handlerNames(r.afterCommit)})
			continue
		}
		o, err := newOccurrence(r, payload, e)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		handled = append(handled, o)
	}
	return envelopes, handled, errors.Join(faults...)
}

// rawType is what events.Raw makes: it has no Go type of its own.
var rawType = reflect.TypeOf(events.Raw(events.DomainEvent{}))

func checkPublished(t reflect.Type, name wirename.Name) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if err := wirename.CheckEmbedded(t, name); err != nil {
		return &WiringError{GoType: goName(t), Err: err}
	}
	return nil
}

// typeOf is the event type of a payload for an error's text, which must not
// panic itself.
func typeOf(p events.Payload) (eventType string) {
	defer func() {
		if recover() != nil {
			eventType = fmt.Sprintf("an event of type %T", p)
		}
	}()
	return p.EventType()
}
