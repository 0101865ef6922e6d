package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// Delivery is one call of one handler, as a [Middleware] sees it. Its fields are
// to be read only. It is good until the call has returned.
type Delivery struct {
	Kind    Kind
	Handler string              // package.Function
	Event   *events.DomainEvent // shared with all handlers of the event

	data any // the *events.Event[T] that Event is part of, for typed handlers
	tx   pgx.Tx
}

// Next calls a handler, or the middlewares around it.
type Next func(ctx context.Context, d *Delivery) error

// Middleware wraps handlers, for logging, tracing, metrics and the like:
//
//	func traced(next bus.Next) bus.Next {
//		return func(ctx context.Context, d *bus.Delivery) error {
//			ctx, span := tracer.Start(ctx, d.Kind.String()+" "+d.Handler)
//			defer span.End()
//			return next(ctx, d)
//		}
//	}
//
// It is called once for each subscription, and what it returns once for each
// delivery, by several goroutines at once. That must pass on the Delivery it got,
// and a ctx made of the one it got. What it returns is what the handler has
// returned, for all that follows: an error of an in-tx handler that it drops does
// not fail the Publish. It need not call next, and the handler then has settled
// the event. A second call of next is a second call of the handler, in the same
// transaction. Its panics are those of the handler it wraps.
type Middleware func(next Next) Next

var errForeignDelivery = errors.New("a middleware has passed on a Delivery of its own: pass on the one that it was given")

// wrap puts the bus's middlewares around a handler, the first one outermost.
func wrap(chain []Middleware, handler Next) (Next, error) {
	for i := len(chain) - 1; i >= 0; i-- {
		if handler = chain[i](handler); handler == nil {
			return nil, fmt.Errorf("Config.Middlewares[%d] returned nil: return a function that calls next", i)
		}
	}
	return handler, nil
}

func faultsOfMiddlewares(chain []Middleware) (faults []error) {
	for i, m := range chain {
		if m == nil {
			faults = append(faults, fmt.Errorf("Config.Middlewares[%d] is nil: leave it out", i))
		}
	}
	return faults
}

// typed gives the event that a typed handler is called with.
func typed[T events.Payload](d *Delivery) (*events.Event[T], error) {
	if e, ok := d.data.(*events.Event[T]); ok {
		return e, nil
	}
	return nil, errForeignDelivery
}
