package handlers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// NoTimeout as a timeout sets none.
const NoTimeout time.Duration = -1

// Timeout gives each attempt of the handler a deadline, and the message its own
// context back, so that the next attempt and a poisoning start with time left. A
// handler that ignores its context is not stopped. NoTimeout, or any timeout that
// is not positive, sets no deadline.
func Timeout(timeout time.Duration) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		if timeout <= 0 {
			return next
		}
		return func(msg *message.Message) ([]*message.Message, error) {
			outer := msg.Context()
			ctx, cancel := context.WithTimeout(outer, timeout)
			defer cancel()
			msg.SetContext(ctx)
			out, err := next(msg)
			msg.SetContext(outer)
			if err != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && outer.Err() == nil {
				err = fmt.Errorf("the attempt took longer than its timeout of %s: %w", timeout, err)
			}
			return out, err
		}
	}
}
