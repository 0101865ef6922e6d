package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/typepattern"
	"github.com/postbus/postbus/internal/wirename"
	"github.com/postbus/postbus/outbox"
)

// StartAt is where a durable handler of a new name begins: [FromBeginning],
// [FromNow] or [FromTime]. It says nothing to one that has run before.
type StartAt = outbox.StartAt

const (
	// FromBeginning takes everything the log holds.
	FromBeginning = outbox.FromBeginning
	// FromNow takes what is committed from the first Run on.
	FromNow = outbox.FromNow
)

// FromTime takes what was appended at t or later, by the database's clock. Events
// appended up to a second before may come along.
func FromTime(t time.Time) StartAt { return outbox.FromTime(t) }

// DurableOption is a choice for one durable handler; the others are those of
// [Config].Durable.
type DurableOption func(*outbox.DurableConfig)

// Batch has up to n events share a transaction: see outbox.DurableConfig.Batch.
func Batch(n int) DurableOption { return func(c *outbox.DurableConfig) { c.Batch = n } }

// Retry says how an event whose handler fails is tried again.
func Retry(r outbox.RetryConfig) DurableOption {
	return func(c *outbox.DurableConfig) { c.Retry = r }
}

// OnGivingUp says what becomes of a key when one of its events is given up:
// outbox.BlockKey, the default, or outbox.SkipKey.
func OnGivingUp(p outbox.Policy) DurableOption {
	return func(c *outbox.DurableConfig) { c.Policy = p }
}

// HandlerTimeout bounds one call of the handler.
func HandlerTimeout(d time.Duration) DurableOption {
	return func(c *outbox.DurableConfig) { c.HandlerTimeout = d }
}

// SubscribeDurable has h called for every committed event of T's wire name in the log,
// whoever has published it, while [EventBus.Run] runs: one after the other, each in a
// transaction that also notes that the event is done with. What h writes through its tx
// takes effect once, through crashes, lost connections and several processes.
// name is that of the position in the log, and never changes; from is where it begins.
//
// If h fails, its transaction is rolled back and the event is put aside and tried
// again, with backoff; later events of its key wait behind it, other keys go on. It is
// given up after its attempts, or at once for an error of [Permanent]; a person then
// decides (outbox.Desk). A version of T's wire name above T's own is held until a
// program that knows it runs; one below is given up at once.
//
// h may publish through its tx; after-commit handlers of such events are called as
// those of [InTx] are. tx must not be committed, rolled back, kept or shared.
//
// What is said of [SubscribeInTx] about T and panics at wiring holds here too; so
// does a second durable handler of the same name. It must be called before Run. The
// Subscription's Cancel ends the handler after the event it is at; its position stays.
func SubscribeDurable[T events.Payload](b *EventBus, name string, from StartAt, h func(ctx context.Context, tx pgx.Tx, e events.Event[T]) error, opts ...DurableOption) *Subscription {
	s := &Subscription{bus: b, goType: reflect.TypeFor[T](), open: openTyped[T],
		info: SubscriptionInfo{Kind: KindDurable, GoType: goName(reflect.TypeFor[T]()), Handler: funcName(h), Name: name}}
	faults := faultsOfCall(b, h == nil)
	wire, err := wirename.Check(s.goType)
	if err != nil {
		faults = append(faults, err)
	}
	s.info.EventType, s.info.SchemaVersion = wire.EventType, wire.Version
	return b.addDurable(s, from, opts, faults, func(ctx context.Context, d *Delivery) error {
		e, err := typed[T](d)
		if err != nil {
			return err
		}
		return h(ctx, d.tx, *e)
	})
}

// SubscribeDurableTo has h called as [SubscribeDurable] does, for every event whose
// type matches the pattern, whatever its version and Go type. See [SubscribeInTxTo]
// for patterns.
func SubscribeDurableTo(b *EventBus, name string, from StartAt, pattern string, h func(ctx context.Context, tx pgx.Tx, e events.DomainEvent) error, opts ...DurableOption) *Subscription {
	s := &Subscription{bus: b, info: SubscriptionInfo{Kind: KindDurable, EventType: pattern, Handler: funcName(h), Name: name}}
	faults := faultsOfCall(b, h == nil)
	p, err := typepattern.Parse(pattern)
	if err != nil {
		faults = append(faults, err)
	}
	s.pattern = &p
	return b.addDurable(s, from, opts, faults, func(ctx context.Context, d *Delivery) error {
		return h(ctx, d.tx, *d.Event)
	})
}

func (b *EventBus) addDurable(s *Subscription, from StartAt, opts []DurableOption, faults []error, call Next) *Subscription {
	if len(faults) == 0 && b.pool == nil {
		faults = append(faults, errors.New("the bus has no database to run durable handlers on: set Config.Pool"))
	}
	if len(faults) == 0 {
		cfg := b.durableConfig
		for _, o := range opts {
			if o != nil {
				o(&cfg)
			}
		}
		cfg.Name, cfg.Schema, cfg.StartAt, cfg.Types = s.info.Name, b.log.Schema(), from, []string{s.info.EventType}
		var err error
		if s.durable, err = outbox.NewDurable(b.pool, b.durably(s), cfg); err != nil {
			faults = append(faults, err)
		} else if err := b.add(s, call); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		e := &WiringError{Handler: s.info.Handler, GoType: s.info.GoType, Err: errors.Join(faults...)}
		if s.goType == nil {
			e.Pattern = clip(s.info.EventType)
		}
		panic(e)
	}
	return s
}

// checkDurable refuses a durable handler that could not run.
func (b *EventBus) checkDurable(all []*Subscription, s *Subscription) error {
	if s.durable == nil {
		return nil
	}
	if b.running {
		return errors.New("the bus is running: subscribe durable handlers before EventBus.Run")
	}
	if i := slices.IndexFunc(all, func(o *Subscription) bool { return o.durable != nil && o.info.Name == s.info.Name }); i >= 0 {
		return fmt.Errorf("a durable handler is named %q already, %s: each has a position of its own, so give this one another name", s.info.Name, all[i].info.Handler)
	}
	return nil
}

// ErrNoDurables is returned by Run of a bus without durable handlers.
var ErrNoDurables = errors.New("run the bus: it has no durable handlers: add some by SubscribeDurable before Run, or leave Run out")

// Run runs the durable handlers until ctx is done, on a pool of their own of at most
// [Config].DurableConnections; then it lets those under way return, and returns nil.
// In as many processes as you like: each handler is at work in one of them, the others
// stand by. It returns an error at once for what waiting cannot mend: see
// outbox.Relay.Run. Handlers that are not durable need no Run.
func (b *EventBus) Run(ctx context.Context) error {
	if b == nil || b.log == nil {
		return errNoBus
	}
	b.subscribing.Lock()
	if b.running {
		b.subscribing.Unlock()
		return fmt.Errorf("run the bus: %w: one Run at a time", outbox.ErrAlreadyRunning)
	}
	durables := b.Durables()
	b.running = len(durables) > 0
	b.subscribing.Unlock()
	if len(durables) == 0 {
		return ErrNoDurables
	}
	defer func() {
		b.subscribing.Lock()
		b.running = false
		b.subscribing.Unlock()
	}()
	return outbox.RunDurables(ctx, b.pool, b.durableConnections, durables...)
}

// Durables are the durable handlers, in the order of subscription, for who wants to
// run them otherwise than by Run: a test, to the end of the log.
func (b *EventBus) Durables() (all []*outbox.Durable) {
	if b == nil || b.log == nil {
		return nil
	}
	for _, s := range b.subscribed.Load().all {
		if s.durable != nil {
			all = append(all, s.durable)
		}
	}
	return all
}

// durably is what a durable handler is to the outbox.
func (b *EventBus) durably(s *Subscription) outbox.DurableFunc {
	return func(ctx context.Context, tx *outbox.Tx, m *outbox.Message) error {
		o, err := s.occurrenceOf(m)
		if err != nil {
			return err
		}
		e, name := o.envelope, s.info.Handler
		sc := newScope(ctx, tx, ours)
		defer sc.close()
		sc.chain = sc.chain.next(e.EventType)
		ctx = withFrame(events.ContextHandling(ctx, *e), frame{scope: sc, chain: sc.chain})
		err = protect(name, e.EventID, func() error { return s.call(ctx, o.to(s, &followedTx{Tx: tx, scope: sc})) }, func() {})
		if err == nil && txStatus(tx) == statusAborted {
			err = errLeftAborted
		}
		if err == nil {
			err = sc.doom()
		}
		if err != nil {
			return &HandlerError{Kind: KindDurable, Handler: name, EventType: e.EventType, EventID: e.EventID, Err: err}
		}
		tx.AfterCommit(func() {
			sc.wake()
			runAfterCommit(sc.announcements)
		})
		return nil
	}
}

// occurrenceOf decodes an event of the log for one handler.
func (s *Subscription) occurrenceOf(m *outbox.Message) (*occurrence, error) {
	e, err := events.Decode(m.Payload)
	if err != nil {
		return nil, Permanent(fmt.Errorf("decode %s %s for %s: %w", m.EventType, m.EventID, s.info.Handler, err))
	}
	if m.Key != e.AggregateID {
		e.PartitionKey = m.Key
	}
	o := &occurrence{envelope: &e}
	if s.open == nil {
		return o, nil
	}
	switch want := s.info.SchemaVersion; {
	case e.SchemaVersion > want:
		return nil, fmt.Errorf("%s %s is of version %d, %s handles version %d: %w: it is held until a program that knows it runs", e.EventType, e.EventID, e.SchemaVersion, s.info.Handler, want, outbox.ErrNotYet)
	case e.SchemaVersion < want:
		return nil, Permanent(fmt.Errorf("%s %s is of version %d, %s handles version %d: subscribe a durable handler of that version, too, or discard the event", e.EventType, e.EventID, e.SchemaVersion, s.info.Handler, want))
	}
	if o.data, o.envelope, err = s.open(nil, e); err != nil {
		return nil, Permanent(err)
	}
	return o, nil
}

// Permanent marks err, returned by a durable handler, as one that trying again cannot
// help: the event is given up at once. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &markedError{err, outbox.ErrPermanent}
}

// Unavailable marks err, returned by a durable handler, as no fault of the event:
// what the handler needs is away. No attempt is counted, nothing is put aside, and all
// events wait until one gets through. Unavailable(nil) is nil.
func Unavailable(err error) error {
	if err == nil {
		return nil
	}
	return &markedError{err, outbox.ErrUnavailable}
}

// markedError is err with a mark that its text does not show.
type markedError struct{ err, mark error }

func (e *markedError) Error() string   { return e.err.Error() }
func (e *markedError) Unwrap() []error { return []error{e.err, e.mark} }
