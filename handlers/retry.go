package handlers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/cenkalti/backoff/v5"
)

// NoJitter as RetryConfig.Jitter waits exactly the computed intervals.
const NoJitter float64 = -1

// RetryConfig says how often, and for how long, a failing handler is tried
// again while its message is held. The zero value is usable.
type RetryConfig struct {
	// MaxAttempts counts the first one too. Defaults to 5; 1 never retries.
	MaxAttempts int
	// Initial is the wait after the first failure. Defaults to 200 ms.
	Initial time.Duration
	// MaxInterval bounds the waits, before jitter. Defaults to 10 s.
	MaxInterval time.Duration
	// Multiplier is by how much each wait exceeds the one before. Defaults to 2.
	Multiplier float64
	// Jitter moves each wait by up to this share of it, either way, so that
	// consumers do not retry in step. Defaults to 0.3; NoJitter has its name.
	Jitter float64
	// MaxElapsed bounds all attempts and waits of one delivery together: no
	// attempt begins later, and the deadline of one that runs is not later. When
	// it is used up, Retry gives up as it does after MaxAttempts. It must be well below the time
	// after which the broker gives the message to somebody else (SQS: visibility
	// timeout; Kafka: max.poll.interval; Redis: the idle time after which entries
	// are claimed; RabbitMQ: consumer_timeout). Defaults to 30 s.
	MaxElapsed time.Duration
}

func (c *RetryConfig) setDefaults() {
	setDefault(&c.MaxAttempts, 5)
	setDefault(&c.Initial, 200*time.Millisecond)
	setDefault(&c.MaxInterval, max(10*time.Second, c.Initial))
	setDefault(&c.Multiplier, 2)
	setDefault(&c.Jitter, 0.3)
	setDefault(&c.MaxElapsed, 30*time.Second)
}

// faults are named as fields of the config at path. Call it after setDefaults.
func (c RetryConfig) faults(path string) (faults []error) {
	refuse := func(field, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s.%s "+format, append([]any{path, field}, args...)...))
	}
	if c.MaxAttempts < 0 {
		refuse("MaxAttempts", "is %d: use 1 for no retries, 0 for the default of 5", c.MaxAttempts)
	}
	if c.Initial < 0 {
		refuse("Initial", "is %s: use a positive duration, or 0 for the default of 200 ms", c.Initial)
	}
	if c.MaxInterval < c.Initial {
		refuse("MaxInterval", "is %s, less than the first wait of %s: raise it or lower Initial", c.MaxInterval, c.Initial)
	}
	if !(c.Multiplier >= 1 && c.Multiplier <= 100) {
		refuse("Multiplier", "is %v: use 1 (constant waits) to 100, or 0 for the default of 2", c.Multiplier)
	}
	if c.Jitter != NoJitter && !(c.Jitter > 0 && c.Jitter <= 1) {
		refuse("Jitter", "is %v: use a share up to 1, NoJitter, or 0 for the default of 0.3", c.Jitter)
	}
	if c.MaxElapsed < 0 {
		refuse("MaxElapsed", "is %s: use a positive duration below the broker's deadline, or 0 for the default of 30 s", c.MaxElapsed)
	}
	return faults
}

// Retry tries a failing handler again, in place, with exponential waits.
//
// What it returns is nil, or one of two errors: a *[GaveUpError] when trying
// again is no use (Permanent), or the attempts or the time are used up; a
// *[PostponedError] when the message should be given back: the handler was
// interrupted, something other than the handler is out of order, or RetryAfter
// asks for more time than there is. Attempts made before that are remembered (for
// some ten thousand events, in this process only), and go on at the redelivery.
//
// It belongs inside Poison, and outside of Timeout and Recover.
func Retry(cfg RetryConfig) (message.HandlerMiddleware, error) {
	cfg.setDefaults()
	if faults := cfg.faults("RetryConfig"); len(faults) > 0 {
		return nil, fmt.Errorf("handlers.Retry: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		r := &retrier{cfg: cfg, next: next, carried: newMemory[string, carried](10_000)}
		return r.handle
	}, nil
}

type retrier struct {
	cfg     RetryConfig
	next    message.HandlerFunc
	carried *memory[string, carried] // by delivery.remembered
}

// carried is what is known of an event that was given back.
type carried struct {
	attempts  int
	losses    int       // connections lost under the handler, one after the other
	notBefore time.Time // RetryAfter
}

// maxLosses bounds how often one event may lose its connection to the database in
// mid-handler without that counting as a failure. A connection is lost when the
// database fails, which is not the handler's fault; but an event whose statements
// crash their backend must not do so for ever.
const maxLosses = 20

func (r *retrier) handle(msg *message.Message) ([]*message.Message, error) {
	d, done := ensureDelivery(msg)
	defer done()
	outer := msg.Context()

	c, _ := r.carried.take(d.remembered(msg))
	if wait := time.Until(c.notBefore); wait > 0 {
		r.carried.put(d.remembered(msg), c)
		return nil, &PostponedError{After: wait, Err: fmt.Errorf("%s asked for a later attempt", d)}
	}
	start := time.Now()
	ctx, cancel := context.WithDeadline(outer, start.Add(r.cfg.MaxElapsed))
	defer cancel()
	waits := r.backOff()
	for {
		d.Attempt = c.attempts + 1
		msg.SetContext(ctx)
		out, err := r.next(msg)
		msg.SetContext(outer)
		if err == nil {
			return out, nil
		}
		wait, verdict := r.judge(outer, &c, err, waits, start)
		if verdict != nil {
			if errors.Is(verdict, ErrPostponed) && c != (carried{}) {
				r.carried.put(d.remembered(msg), c)
			}
			return nil, verdict
		}
		if d.onRetry != nil {
			d.onRetry(d, err, wait)
		}
		if !sleep(outer, d.stopping, wait) {
			r.carried.put(d.remembered(msg), c)
			return nil, interrupted(d, err)
		}
	}
}

// judge says how an attempt that returned err ends the delivery, or how long to
// wait for the next.
func (r *retrier) judge(outer context.Context, c *carried, err error, waits backoff.BackOff, start time.Time) (wait time.Duration, verdict error) {
	d := deliveryOf(outer)
	if outer.Err() != nil {
		return 0, interrupted(d, err)
	}
	if errors.Is(err, ErrPostponed) {
		d.Attempt = c.attempts // this one does not count
	}
	if errors.Is(err, errConnectionLost) {
		if c.losses++; c.losses < maxLosses {
			return 0, err
		}
		return 0, &GaveUpError{c.attempts, fmt.Errorf("lost the connection %d times in a row: %v", c.losses, err)}
	}
	if errors.Is(err, ErrPostponed) {
		return 0, err
	}
	c.attempts, c.losses = d.Attempt, 0
	var permanent *PermanentError
	if errors.As(err, &permanent) || c.attempts >= r.cfg.MaxAttempts {
		return 0, &GaveUpError{c.attempts, err}
	}
	wait = waits.NextBackOff()
	elapsed := time.Since(start)
	var after *RetryAfterError
	if errors.As(err, &after) {
		if wait = after.After; elapsed+wait >= r.cfg.MaxElapsed {
			c.notBefore = time.Now().Add(wait)
			return 0, &PostponedError{After: wait, Err: err}
		}
	}
	if elapsed+wait >= r.cfg.MaxElapsed {
		return 0, &GaveUpError{c.attempts, fmt.Errorf("no time is left of the %s that the message may be held: %w", r.cfg.MaxElapsed, err)}
	}
	return wait, nil
}

func (r *retrier) backOff() backoff.BackOff {
	b := &backoff.ExponentialBackOff{
		InitialInterval:     r.cfg.Initial,
		MaxInterval:         r.cfg.MaxInterval,
		Multiplier:          r.cfg.Multiplier,
		RandomizationFactor: max(r.cfg.Jitter, 0),
	}
	b.Reset()
	return b
}

func interrupted(d *delivery, err error) error {
	return &PostponedError{Err: fmt.Errorf("%w: %s: %w", ErrInterrupted, d, err)}
}
