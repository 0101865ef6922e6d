package handlers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// SlowNackConfig says how long a message is held that is about to be given back.
// The zero value is usable.
type SlowNackConfig struct {
	// Initial is the pause of the first message that cannot be settled; it doubles
	// until one can. Defaults to 200 ms.
	Initial time.Duration
	// Max bounds the pauses. An event from the future, and one that asks for more
	// time, is held for it at once. It adds to RetryConfig.MaxElapsed. Defaults to 5 s.
	Max time.Duration
}

func (c *SlowNackConfig) setDefaults() {
	setDefault(&c.Initial, 200*time.Millisecond)
	setDefault(&c.Max, max(5*time.Second, c.Initial))
}

func (c SlowNackConfig) faults(path string) (faults []error) {
	if c.Initial < 0 {
		faults = append(faults, fmt.Errorf("%s.Initial is %s: use a positive duration, or 0 for the default of 200 ms", path, c.Initial))
	}
	if c.Max < c.Initial {
		faults = append(faults, fmt.Errorf("%s.Max is %s, less than the first pause of %s: raise it or lower Initial", path, c.Max, c.Initial))
	}
	return faults
}

// SlowNack holds back the error of a message, and with it the nack: brokers
// deliver again at once, and an outage would become a hot loop. An interrupted
// delivery is given back at once. It belongs outermost.
func SlowNack(cfg SlowNackConfig) (message.HandlerMiddleware, error) {
	cfg.setDefaults()
	if faults := cfg.faults("SlowNackConfig"); len(faults) > 0 {
		return nil, fmt.Errorf("handlers.SlowNack: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		var streak atomic.Int32 // failures since the last success
		return func(msg *message.Message) ([]*message.Message, error) {
			d, done := ensureDelivery(msg)
			defer done()
			out, err := next(msg)
			if err == nil {
				streak.Store(0)
				return out, nil
			}
			if errors.Is(err, ErrInterrupted) {
				return nil, err
			}
			sleep(msg.Context(), d.stopping, cfg.pause(int(streak.Add(1)), err))
			return nil, err
		}
	}, nil
}

// pause is the streak's n-th.
func (c SlowNackConfig) pause(n int, err error) time.Duration {
	wait := c.Max
	if n <= 10 {
		wait = min(c.Initial<<(n-1), c.Max)
	}
	var asked *PostponedError
	if errors.As(err, &asked) {
		wait = max(wait, min(asked.After, c.Max))
	}
	return wait - time.Duration(rand.Int64N(int64(wait)/5+1)) // jitter, never over Max
}
