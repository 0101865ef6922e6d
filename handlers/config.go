package handlers

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/outbox"
)

// Config configures a Router. Pool and Poison.Publisher are required, all else
// has a default.
//
// A delivery is held for at most Retry.MaxElapsed, four calls to the inbox
// (InboxTimeout each), Poison.Timeout and SlowNack.Max: 65 seconds by default,
// usually milliseconds. The broker's deadline must be above that.
type Config struct {
	// Pool is of the database that has the inbox; HandleTx runs its transactions on
	// it. It needs a connection for each message in flight and each handler of its
	// type. It is not closed. Required.
	Pool *pgxpool.Pool
	// Schema holds the inbox. Defaults to migrations.DefaultSchema.
	Schema string
	// InboxTimeout is InboxConfig.Timeout. Defaults to 5 s.
	InboxTimeout time.Duration
	// IdleTimeout is InboxConfig.IdleTimeout; a handler whose attempts may take longer
	// than half of it gets twice what they may take. Defaults to 1 minute.
	IdleTimeout time.Duration

	// Topic names the topic of an event type, as the publishing log's
	// LogConfig.Topic does. Defaults to outbox.DefaultTopic.
	Topic func(eventType string) string

	// Retry is for handlers without a WithRetry of their own.
	Retry RetryConfig
	// Timeout is the deadline of one attempt, for handlers without a WithTimeout of
	// their own. Defaults to 10 s; NoTimeout leaves only Retry.MaxElapsed.
	Timeout time.Duration
	// Poison is where given-up messages go.
	Poison PoisonConfig
	// SlowNack is how long a message is held before it is given back.
	SlowNack SlowNackConfig

	// CloseTimeout is how long Run waits, once its ctx has ended, for the attempts
	// that are running; no new one begins. Then their contexts are cancelled, and
	// Run waits for CloseGrace more. Defaults to 20 s, which fits into the 30 s that
	// Kubernetes leaves a process.
	CloseTimeout time.Duration

	// OnResult is told how each delivery of a message to a handler ended, before the
	// message is acked or nacked. It is called by many goroutines at once and holds
	// up the message; a panic in it is logged. Optional.
	OnResult func(HandlerResult)
	// Logger defaults to slog.Default(). Payloads are never logged; errors are,
	// shortened, without what looks like a credential.
	Logger *slog.Logger
}

// CloseGrace is what handlers have to return once their contexts are cancelled.
const CloseGrace = 5 * time.Second

func (c *Config) setDefaults() {
	if c.Topic == nil {
		c.Topic = outbox.DefaultTopic
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	setDefault(&c.Timeout, 10*time.Second)
	setDefault(&c.CloseTimeout, 20*time.Second)
	c.Retry.setDefaults()
	c.Poison.setDefaults()
	c.SlowNack.setDefaults()
}

func (c Config) inbox() InboxConfig {
	return InboxConfig{Schema: c.Schema, Timeout: c.InboxTimeout, IdleTimeout: c.IdleTimeout}
}

func (c Config) check(subscriber message.Subscriber) error {
	var faults []error
	if subscriber == nil {
		faults = append(faults, errors.New("subscriber is nil: pass the message.Subscriber of your broker"))
	}
	faults = append(faults, c.inbox().faults(c.Pool, "Config.Pool", "Config.Schema", "Config.InboxTimeout", "Config.IdleTimeout")...)
	faults = append(faults, c.Retry.faults("Config.Retry")...)
	faults = append(faults, timeoutFaults("Config.Timeout", c.Timeout)...)
	faults = append(faults, c.Poison.faults("Config.Poison")...)
	faults = append(faults, c.SlowNack.faults("Config.SlowNack")...)
	if c.CloseTimeout < 0 {
		faults = append(faults, fmt.Errorf("Config.CloseTimeout is %s: use a positive duration, or 0 for the default of 20 s", c.CloseTimeout))
	}
	if len(faults) > 0 {
		return fmt.Errorf("handlers.NewRouter: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return nil
}

func timeoutFaults(name string, timeout time.Duration) []error {
	if timeout < 0 && timeout != NoTimeout {
		return []error{fmt.Errorf("%s is %s: use a positive duration, NoTimeout, or 0 for the default of 10 s", name, timeout)}
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
