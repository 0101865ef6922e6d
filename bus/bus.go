package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

const (
	// DefaultMaxDepth is how deep publications may nest unless Config says otherwise.
	DefaultMaxDepth = 16
	// DefaultAfterCommitTimeout is the deadline of an after-commit handler's ctx
	// unless Config says otherwise.
	DefaultAfterCommitTimeout = 30 * time.Second
	// NoTimeout as Config.AfterCommitTimeout sets no deadline.
	NoTimeout time.Duration = -1
)

// ErrInvalidConfig is wrapped by every refusal of New and of an option.
var ErrInvalidConfig = errors.New("invalid config")

// Config configures an EventBus. The zero value is usable.
type Config struct {
	// MaxDepth bounds how deep handlers that publish may nest: 1 forbids it. It
	// counts through after-commit handlers and the transactions they begin. What
	// lies deeper is refused with a *DepthError. Defaults to 16.
	MaxDepth int
	// AfterCommitTimeout is the deadline of the ctx of each call of an after-commit
	// handler, which the caller of InTx waits for. Defaults to 30 s; NoTimeout
	// sets none.
	AfterCommitTimeout time.Duration
	// OnAfterCommitError is told what an after-commit handler returned or panicked
	// with. It is called by the goroutine of InTx, with the handler's ctx, and by
	// several at once if several transactions are committed at once. The default
	// logs errors as warnings, since the state of the database is right all the
	// same, and panics as errors.
	OnAfterCommitError func(ctx context.Context, err *HandlerError)
	// Metadata gives what every event carries of the ctx it is published under: the
	// tenant, the user, traceparent. It is called once for each Publish, by several
	// goroutines at once. What an event says itself (events.Metadata, events.Raw)
	// comes before what it returns; its map is copied, and the limits of package
	// events hold for both together. If it breaks them, or panics, Publish refuses all
	// its events with a *[MetadataError]. Events that handlers publish are asked for
	// under the handler's ctx, which has the values of the first. None by default.
	Metadata func(ctx context.Context) map[string]string
	// Middlewares wrap every handler of the bus. The first is the outermost: it is
	// called first and returns last. None by default.
	Middlewares []Middleware
	// OnForgotten is told of after-commit handlers that were not called because a
	// followed transaction (see [Follow]) was dropped before anybody said how it
	// ended. It is called once the garbage collector has found that out, by a
	// goroutine of the runtime, which it must not hold up. The default logs a warning.
	OnForgotten func(err *ForgottenError)
	// Pool is what durable handlers run on: see [EventBus.Run], which opens a pool of
	// its own by this one's config. It stays the caller's to close. Needed for
	// SubscribeDurable only.
	Pool *pgxpool.Pool
	// DurableConnections is how many connections all durable handlers together use at
	// most. Defaults to outbox.DefaultConnections; at least 3.
	DurableConnections int
	// Durable is what durable handlers are configured with, as far as their own options
	// do not say otherwise. Its Name, Schema, StartAt and Types are not used.
	Durable outbox.DurableConfig
	// Logger is where the defaults of the two hooks log, and durable handlers. Defaults to slog.Default().
	Logger *slog.Logger
}

// appender is what the bus needs of an *outbox.Log.
type appender interface {
	Append(ctx context.Context, tx pgx.Tx, evs ...events.DomainEvent) error
	Wake()
	Hint()
	Schema() string
}

// EventBus publishes events: it appends them to the outbox and hands them to the
// handlers in this process. Outside of Run it holds no connection and no goroutine, so
// that there is nothing to close. It is safe for use by several goroutines.
type EventBus struct {
	log                appender
	maxDepth           int
	afterCommitTimeout time.Duration // 0: none
	onAfterCommitError func(context.Context, *HandlerError)
	onForgotten        func(*ForgottenError)
	middlewares        []Middleware
	metadata           func(context.Context) map[string]string
	logger             *slog.Logger
	pool               *pgxpool.Pool
	durableConnections int
	durableConfig      outbox.DurableConfig

	subscribed  atomic.Pointer[table]
	running     bool       // Run; guarded by subscribing
	subscribing sync.Mutex // held by whoever replaces the table, never while a handler runs
}

// New makes a bus whose events go to log. All faults of the config are reported
// together, wrapping ErrInvalidConfig.
func New(log *outbox.Log, cfg Config) (*EventBus, error) {
	if log == nil {
		return newBus(nil, cfg)
	}
	return newBus(log, cfg)
}

func newBus(log appender, cfg Config) (*EventBus, error) {
	var faults []error
	if log == nil {
		faults = append(faults, errors.New("log is nil: make one with outbox.NewLog"))
	}
	if cfg.MaxDepth < 0 {
		faults = append(faults, fmt.Errorf("Config.MaxDepth is %d: use 1 or more, or 0 for the default of %d", cfg.MaxDepth, DefaultMaxDepth))
	}
	if cfg.AfterCommitTimeout < 0 && cfg.AfterCommitTimeout != NoTimeout {
		faults = append(faults, fmt.Errorf("Config.AfterCommitTimeout is %s: use a duration, 0 for the default of %s, or NoTimeout", cfg.AfterCommitTimeout, DefaultAfterCommitTimeout))
	}
	if cfg.DurableConnections < 0 || cfg.DurableConnections == 1 || cfg.DurableConnections == 2 {
		faults = append(faults, fmt.Errorf("Config.DurableConnections is %d: use 3 or more, or 0 for the default of %d", cfg.DurableConnections, outbox.DefaultConnections))
	}
	faults = append(faults, faultsOfMiddlewares(cfg.Middlewares)...)
	if len(faults) > 0 {
		return nil, fmt.Errorf("bus.New: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	if cfg.MaxDepth == 0 {
		cfg.MaxDepth = DefaultMaxDepth
	}
	switch cfg.AfterCommitTimeout {
	case 0:
		cfg.AfterCommitTimeout = DefaultAfterCommitTimeout
	case NoTimeout:
		cfg.AfterCommitTimeout = 0
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	b := &EventBus{
		log:                log,
		maxDepth:           cfg.MaxDepth,
		afterCommitTimeout: cfg.AfterCommitTimeout,
		onAfterCommitError: cfg.OnAfterCommitError,
		onForgotten:        cfg.OnForgotten,
		middlewares:        slices.Clone(cfg.Middlewares),
		metadata:           cfg.Metadata,
		logger:             cfg.Logger,
		pool:               cfg.Pool,
		durableConnections: cfg.DurableConnections,
		durableConfig:      cfg.Durable,
	}
	if b.durableConfig.Logger == nil {
		b.durableConfig.Logger = cfg.Logger
	}
	if b.onAfterCommitError == nil {
		b.onAfterCommitError = b.logAfterCommitError
	}
	if b.onForgotten == nil {
		b.onForgotten = b.logForgotten
	}
	b.subscribed.Store(newTable(nil))
	return b, nil
}
