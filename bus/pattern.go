package bus

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/postbus/postbus/events"
)

// pattern is a set of event types, in this grammar:
//
//	"*"             every event type
//	type ".*"       every event type that begins with type and a dot, at any depth
//	type            that event type alone
//
// where type is an event type in the grammar of events.MaxEventTypeBytes. So
// order.* has order.placed and order.line.added, but neither order nor orders.placed.
// Every schema version of a type belongs to the set.
type pattern struct {
	begin string
	open  bool // whatever begins with begin, instead of begin alone
}

func parsePattern(s string) (pattern, error) {
	const grammar = `use "*" for every event, "order.*" for every event type below order, or one event type such as "order.placed"`
	if s == "*" {
		return pattern{open: true}, nil
	}
	eventType, open := strings.CutSuffix(s, ".*")
	if strings.Contains(eventType, "*") {
		return pattern{}, fmt.Errorf("the pattern %q has a star that is not its whole last segment: %s", clip(s), grammar)
	}
	if fault := faultOfType(eventType); fault != "" {
		return pattern{}, fmt.Errorf("the event type in the pattern %q %s; %s", clip(s), fault, grammar)
	}
	if open {
		eventType += "."
	}
	return pattern{begin: eventType, open: open}, nil
}

func (p pattern) matches(eventType string) bool {
	if p.open {
		return strings.HasPrefix(eventType, p.begin)
	}
	return eventType == p.begin
}

// faultOfType is what is wrong with an event type by the rules of package events, or "".
func faultOfType(eventType string) string {
	probe := soundEvent()
	probe.EventType = eventType
	var invalid *events.InvalidEventError
	if errors.As(probe.Validate(), &invalid) {
		return invalid.Reason
	}
	return ""
}

// soundEvent is an event with nothing wrong in it, to try one part with.
func soundEvent() events.DomainEvent {
	return events.DomainEvent{
		EventID: events.NewID(), EventType: "sound", SchemaVersion: 1,
		AggregateID: "-", Timestamp: time.Unix(1, 0), Data: []byte("{}"),
	}
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200]
	}
	return s
}
