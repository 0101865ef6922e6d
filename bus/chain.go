package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postbus/postbus/events"
)

// ErrTooDeep is wrapped by a *[DepthError].
var ErrTooDeep = errors.New("handlers publish too deep")

// DepthError refuses a publication that lies deeper than [Config].MaxDepth:
// handlers that publish call handlers that publish. Nothing has been appended.
type DepthError struct {
	EventType string   // of the event refused
	Depth     int      // the depth allowed
	Path      []string // event types from the first publication to the one refused
	Cycle     []string // the part of Path that repeats itself, its first type also last; nil if none does
}

func (e *DepthError) Error() string {
	if e.Cycle != nil {
		return fmt.Sprintf("publish %s: %v (%d levels), in the cycle %s: break it, for instance by a check of whether there is still something to do",
			e.EventType, ErrTooDeep, e.Depth, strings.Join(e.Cycle, " -> "))
	}
	return fmt.Sprintf("publish %s: %v (%d levels): %s: shorten the chain, or raise Config.MaxDepth",
		e.EventType, ErrTooDeep, e.Depth, strings.Join(e.Path, " -> "))
}

// Unwrap gives ErrTooDeep.
func (e *DepthError) Unwrap() error { return ErrTooDeep }

// link is an event being handled, and what was being handled when it was
// published.
type link struct {
	eventType string
	parent    *link
	depth     int // 1 for an event that no handler has published
}

func (l *link) next(eventType string) *link {
	n := &link{eventType: eventType, parent: l, depth: 1}
	if l != nil {
		n.depth = l.depth + 1
	}
	return n
}

func (b *EventBus) checkDepth(parent *link, p events.Payload) error {
	if parent == nil || parent.depth < b.maxDepth {
		return nil
	}
	e := &DepthError{EventType: typeOf(p), Depth: b.maxDepth}
	for l := parent; l != nil; l = l.parent {
		e.Path = append(e.Path, l.eventType)
	}
	slices.Reverse(e.Path)
	if last := lastIndex(e.Path, e.EventType); last >= 0 {
		e.Cycle = append(slices.Clone(e.Path[last:]), e.EventType)
	}
	e.Path = append(e.Path, e.EventType)
	return e
}

func lastIndex(types []string, t string) int {
	for i := len(types) - 1; i >= 0; i-- {
		if types[i] == t {
			return i
		}
	}
	return -1
}

// frame is what the bus keeps in the ctx of fn and of handlers: the transaction
// they are in, and the event that is being handled.
type frame struct {
	scope *scope // nil after a commit
	chain *link  // nil outside handlers
}

type frameKey struct{}

func withFrame(ctx context.Context, f frame) context.Context {
	return context.WithValue(ctx, frameKey{}, f)
}

func frameOf(ctx context.Context) frame {
	f, _ := ctx.Value(frameKey{}).(frame)
	return f
}
