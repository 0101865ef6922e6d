package handlers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
)

// Router hands the messages of a broker to typed handlers. It owns one
// subscription per topic, whatever the number of handlers: each message goes to
// all that are for its event type, and is acked once every one of them has
// settled. It is made by NewRouter, filled by Handle and HandleTx, and run once.
type Router struct {
	subscriber message.Subscriber
	cfg        Config
	inbox      *Inbox
	poison     message.HandlerMiddleware
	unrecorded message.HandlerMiddleware // poison, without the inbox
	slowNack   message.HandlerMiddleware
	garbage    message.HandlerFunc // poisons what cannot be decoded
	counters   counters
	returned   *memory[uuid.UUID, struct{}] // events that were given back

	mu      sync.Mutex
	running bool // Run was called
	names   map[string]bool
	topics  map[string][]*handler // by topic
	byType  map[string][]*handler // by event type; not changed once running
}

// NewRouter checks the config, and reports all its faults at once. It starts
// nothing and connects to nothing. subscriber, and all that cfg holds, is its
// owner's to close, after Run has returned.
func NewRouter(subscriber message.Subscriber, cfg Config) (*Router, error) {
	cfg.setDefaults()
	if err := cfg.check(subscriber); err != nil {
		return nil, err
	}
	r := &Router{
		subscriber: subscriber, cfg: cfg, returned: newMemory[uuid.UUID, struct{}](10_000),
		names: map[string]bool{}, topics: map[string][]*handler{}, byType: map[string][]*handler{},
	}
	var errs [4]error // of configs that were checked above
	r.inbox, errs[0] = NewInbox(cfg.Pool, cfg.inbox())
	r.poison, errs[1] = Poison(r.inbox, cfg.Poison)
	r.unrecorded, errs[2] = Poison(nil, cfg.Poison)
	r.slowNack, errs[3] = SlowNack(cfg.SlowNack)
	r.garbage = r.unrecorded(refuseUndecodable) // there is no event id to trust
	return r, errors.Join(errs[:]...)
}

// add registers a handler whose own faults were none.
func (r *Router) add(h *handler) (faults []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.topic = r.cfg.Topic(h.eventType)
	if h.topic == "" {
		faults = append(faults, fmt.Errorf("Config.Topic returns no topic for %q: return the one that its publisher uses", h.eventType))
	}
	if r.running {
		faults = append(faults, errors.New("the router's Run has begun, and messages of this type may have been acked as unknown: add all handlers before Run"))
	}
	if r.names[h.name] {
		faults = append(faults, errors.New("the name is taken: the inbox would take one handler's success for the other's; give each its own"))
	}
	if len(faults) > 0 {
		return faults
	}
	h.chain = r.chain(h)
	r.names[h.name] = true
	r.topics[h.topic] = append(r.topics[h.topic], h)
	r.byType[h.eventType] = append(r.byType[h.eventType], h)
	return nil
}

// chain is the one place that knows the order of the middlewares.
func (r *Router) chain(h *handler) message.HandlerFunc {
	retry, _ := Retry(h.retry) // checked by Handle
	admission := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			if err := h.admit(&deliveryOf(msg.Context()).event, r.cfg.SlowNack.Max); err != nil {
				return nil, err
			}
			return next(msg)
		}
	}
	var outermostFirst []message.HandlerMiddleware
	switch {
	case h.inTx:
		longest := h.retry.MaxElapsed // bounds an attempt too
		if h.timeout != NoTimeout {
			longest = min(longest, h.timeout)
		}
		inTx := InTx(r.inbox.patient(longest)) // a transaction per attempt
		outermostFirst = []message.HandlerMiddleware{r.poison, admission, retry, inTx}
	case h.hasStore:
		outermostFirst = []message.HandlerMiddleware{poisonedOnce(), r.unrecorded, admission, DedupBy(h.store), retry}
	default:
		outermostFirst = []message.HandlerMiddleware{r.poison, admission, Dedup(r.inbox), retry}
	}
	outermostFirst = append(outermostFirst, Timeout(h.timeout), Recover())

	chain := func(msg *message.Message) ([]*message.Message, error) {
		ctx := msg.Context()
		return nil, h.call(ctx, deliveryOf(ctx).event)
	}
	for _, middleware := range slices.Backward(outermostFirst) {
		chain = middleware(chain)
	}
	return chain
}

// Run consumes until ctx ends, and returns nil after a clean stop. It may be
// called once.
//
// When ctx ends, no further message is taken and no further attempt begun.
// Attempts that are running are waited for, Config.CloseTimeout long, with their
// contexts alive; then the contexts are cancelled. What succeeded is acked, all
// else given back; nothing is poisoned for it. A *[CloseTimeoutError] names
// handlers that ignore all this.
//
// It returns an error, and leaves nothing running, if it was called before, if
// there are no handlers, if the inbox is missing, if a topic cannot be subscribed
// to, or if the subscriber ends a subscription by itself (ErrSubscriptionEnded).
// A database that is away is none: messages are given back until it returns.
func (r *Router) Run(ctx context.Context) error {
	r.mu.Lock()
	if r.running {
		r.mu.Unlock()
		return ErrAlreadyRun
	}
	if len(r.names) == 0 {
		r.mu.Unlock()
		return ErrNoHandlers
	}
	r.running = true
	r.mu.Unlock()

	if err := r.inbox.check(ctx); err != nil {
		return fmt.Errorf("run the router of handlers: %w", err)
	}
	if ctx.Err() != nil {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()

	// No logger: Watermill would say again what we say. Its Close waits here only
	// for handlers that have had their CloseTimeout.
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: CloseGrace}, nil)
	if err != nil {
		return err
	}
	subscriptions, err := r.subscribe(ctx, stop)
	if err != nil {
		return err
	}
	for _, s := range subscriptions {
		router.AddConsumerHandler(s.topic, s.topic, s, s.consume)
	}
	errs := []error{router.Run(ctx)}
	for _, s := range subscriptions {
		s.cancel()
		if s.ended.Load() {
			errs = append(errs, fmt.Errorf("consume topic %q: %w: look for the subscriber's own error, and run again", s.topic, ErrSubscriptionEnded))
		}
	}
	if stuck := r.stuck(); len(stuck) > 0 {
		errs = append(errs, &CloseTimeoutError{r.cfg.CloseTimeout + CloseGrace, stuck})
	}
	return errors.Join(errs...)
}

// subscribe opens all subscriptions or none. Watermill's Router would leave the
// first ones behind when a later one fails.
func (r *Router) subscribe(ctx context.Context, stop context.CancelFunc) (all []*subscription, err error) {
	for topic := range r.topics {
		s := &subscription{router: r, topic: topic, stopping: ctx.Done(), stop: stop}
		// Its messages live on when the stop begins.
		s.life, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
		s.in, err = r.subscriber.Subscribe(s.life, topic)
		if err != nil {
			s.cancel()
			for _, opened := range all {
				opened.cancel()
				opened.giveBackRest()
			}
			return nil, fmt.Errorf("subscribe to topic %q: %w", topic, err)
		}
		s.handle = r.slowNack(s.dispatch)
		all = append(all, s)
	}
	return all, nil
}

// stuck names the handlers that still run.
func (r *Router) stuck() (names []string) {
	for _, handlers := range r.topics {
		for _, h := range handlers {
			if h.running.Load() > 0 {
				names = append(names, h.name)
			}
		}
	}
	slices.Sort(names)
	return names
}
