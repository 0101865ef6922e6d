package bus

import (
	"fmt"
	"reflect"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/outbox"
)

// Kind is when a handler is called.
type Kind uint8

const (
	// KindInTx is a handler of SubscribeInTx or SubscribeInTxTo.
	KindInTx Kind = iota + 1
	// KindAfterCommit is a handler of SubscribeAfterCommit or SubscribeAfterCommitTo.
	KindAfterCommit
	// KindDurable is a handler of SubscribeDurable or SubscribeDurableTo.
	KindDurable
	// KindLocal is a handler of Subscribe, on a Local.
	KindLocal
)

// String is the kind as errors and logs show it: "in-tx", "after-commit", "durable", "local".
func (k Kind) String() string {
	switch k {
	case KindInTx:
		return "in-tx"
	case KindAfterCommit:
		return "after-commit"
	case KindDurable:
		return "durable"
	case KindLocal:
		return "local"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// SubscriptionInfo says who is subscribed to what.
type SubscriptionInfo struct {
	Kind          Kind
	EventType     string // the wire name, or the pattern
	SchemaVersion int    // 0 for a pattern: every version
	GoType        string // of the event, with its package's path; empty for a pattern
	Handler       string // package.Function
	Name          string // of a durable handler's position; empty for the others
}

// String is one line about it.
func (i SubscriptionInfo) String() string {
	if i.Name != "" {
		i.Handler += " (" + i.Name + ")"
	}
	if i.SchemaVersion == 0 {
		return fmt.Sprintf("%s %s of %s, every version", i.Kind, i.Handler, i.EventType)
	}
	return fmt.Sprintf("%s %s of %s v%d", i.Kind, i.Handler, i.EventType, i.SchemaVersion)
}

// Subscription is one handler of a bus, from its Subscribe to its Cancel. Whoever
// wants the handler to stay for the life of the bus need not keep it. It is safe
// for use by several goroutines.
type Subscription struct {
	bus     *EventBus // or
	local   *Local
	info    SubscriptionInfo
	extend  func(route any) any // makes of T's *localRoute, or nil, one with the handler
	pattern *pattern            // nil for a typed handler
	goType  reflect.Type        // nil for a pattern
	open    opener              // nil for a pattern
	call    Next                // the handler, with the middlewares around it
	durable *outbox.Durable     // nil for the other kinds
}

// opener makes the *events.Event[T] that typed handlers get, out of an envelope
// and the payload it was made of: nil if there is none, and the data has to be
// decoded.
type opener func(p events.Payload, e events.DomainEvent) (data any, envelope *events.DomainEvent, err error)

// Info says what is subscribed.
func (s *Subscription) Info() SubscriptionInfo { return s.info }

// Cancel ends the subscription: a Publish that begins after Cancel has returned
// does not reach the handler. One that has begun before may still call it, also
// after Cancel has returned: an in-tx handler until that Publish returns (a local
// one until that Dispatch does), an after-commit handler once that Publish's transaction is committed, however
// much later that is; a durable one ends with the event it is at. Cancel waits for none of them, so that a handler may cancel any
// subscription, its own too.
//
// With the last handler of a wire name and version goes the Go type that stood
// for it: another one may then be subscribed.
//
// Cancelling again, or a nil Subscription, does nothing.
func (s *Subscription) Cancel() {
	switch {
	case s == nil:
	case s.bus != nil:
		s.bus.remove(s)
		if s.durable != nil {
			s.durable.Stop()
		}
	case s.local != nil:
		s.local.remove(s)
	}
}

// Subscriptions lists what is subscribed at this moment, in the order of
// subscription, which is the order of calls too.
func (b *EventBus) Subscriptions() []SubscriptionInfo {
	if b == nil || b.log == nil {
		return nil
	}
	return infosOf(b.subscribed.Load().all)
}

func infosOf(all []*Subscription) []SubscriptionInfo {
	infos := make([]SubscriptionInfo, len(all))
	for i, s := range all {
		infos[i] = s.info
	}
	return infos
}
