// Package typepattern is the one rule for patterns of event types: for handlers of
// the bus, for what a relay lets through, and for filters, here and in SQL.
package typepattern

import (
	"fmt"
	"strings"

	"github.com/postbus/postbus/internal/reason"
	"github.com/postbus/postbus/internal/wirename"
)

// Pattern is a set of event types, in this grammar:
//
//	"*"             every event type
//	type ".*"       every event type that begins with type and a dot, at any depth
//	type            that event type alone
//
// where type is an event type in the grammar of events.MaxEventTypeBytes. So
// order.* has order.placed and order.line.added, but neither order nor orders.placed.
// Every schema version of a type belongs to the set. The zero Pattern has no type.
type Pattern struct {
	begin string
	open  bool // whatever begins with begin, instead of begin alone
}

// Parse reads one pattern, or says what is wrong with it and how they are written.
func Parse(s string) (Pattern, error) {
	const grammar = `use "*" for every event, "order.*" for every event type below order, or one event type such as "order.placed"`
	if s == "*" {
		return Pattern{open: true}, nil
	}
	eventType, open := strings.CutSuffix(s, ".*")
	if strings.Contains(eventType, "*") {
		return Pattern{}, fmt.Errorf("the pattern %q has a star that is not its whole last segment: %s", clip(s), grammar)
	}
	if fault := wirename.FaultOfType(eventType); fault != "" {
		return Pattern{}, fmt.Errorf("the event type in the pattern %q %s; %s", clip(s), fault, grammar)
	}
	if open {
		eventType += "."
	}
	return Pattern{begin: eventType, open: open}, nil
}

// Matches tells whether eventType belongs to the set.
func (p Pattern) Matches(eventType string) bool {
	if p.open {
		return strings.HasPrefix(eventType, p.begin)
	}
	return eventType == p.begin && p.begin != ""
}

// like is the set as a pattern of SQL's LIKE with its default escape, the backslash.
// The grammar of event types has the underscore, which LIKE takes for any character.
func (p Pattern) like() string {
	escaped := escape.Replace(p.begin)
	if p.open {
		escaped += "%"
	}
	return escaped
}

var escape = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// Valid is what is wrong with a pattern, or nil.
func Valid(pattern string) error {
	_, err := Parse(pattern)
	return err
}

// Match tells whether eventType belongs to any of patterns. One that is not valid
// has no types. Who asks for every event of a stream parses them once.
func Match(patterns []string, eventType string) bool {
	for _, s := range patterns {
		if p, err := Parse(s); err == nil && p.Matches(eventType) {
			return true
		}
	}
	return false
}

// Like gives the patterns for "event_type LIKE ANY ($1::text[])", which is true for
// exactly the event types that Match finds. One that is not valid is left out. nil
// gives an empty list, never NULL: nothing matches.
func Like(patterns []string) []string {
	likes := make([]string, 0, len(patterns))
	for _, s := range patterns {
		if p, err := Parse(s); err == nil {
			likes = append(likes, p.like())
		}
	}
	return likes
}

func clip(s string) string { return reason.Cut(s, 200) }
