package events

import (
	"context"

	"github.com/google/uuid"
)

// chain is what a context knows about the events published under it.
type chain struct {
	correlation string
	causation   uuid.UUID // of the event being handled, or zero
}

type chainKey struct{}

// ContextHandling gives the context to handle e under: events that New builds
// under it carry e's correlation id, and e's id as their causation id. Routers
// call it; handlers only have to pass their context on.
func ContextHandling(ctx context.Context, e DomainEvent) context.Context {
	c := chain{correlation: e.CorrelationID, causation: e.EventID}
	if c.correlation == "" && e.EventID != uuid.Nil {
		c.correlation = e.EventID.String() // the root of its chain
	}
	return context.WithValue(ctx, chainKey{}, c)
}

// ContextWithCorrelation gives a context under which events carry the
// correlation id given, for instance that of an HTTP request. What causes them
// stays as it was. New refuses the event if the id breaks the rules of a
// correlation id (see [MaxIDBytes]), and "" means none.
func ContextWithCorrelation(ctx context.Context, id string) context.Context {
	c := chainOf(ctx)
	c.correlation = id
	return context.WithValue(ctx, chainKey{}, c)
}

// Correlation is the correlation id that events published under ctx carry, or ""
// when the next one begins a chain of its own.
func Correlation(ctx context.Context) string { return chainOf(ctx).correlation }

func chainOf(ctx context.Context) chain {
	if ctx == nil {
		return chain{}
	}
	c, _ := ctx.Value(chainKey{}).(chain)
	return c
}
