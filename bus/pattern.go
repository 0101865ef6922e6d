package bus

import (
	"fmt"
	"strings"

	"github.com/postbus/postbus/internal/wirename"
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
	if fault := wirename.FaultOfType(eventType); fault != "" {
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

func clip(s string) string {
	if len(s) > 200 {
		return s[:200]
	}
	return s
}
