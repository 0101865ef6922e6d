package bus

import "github.com/postbus/postbus/internal/typepattern"

// pattern is a set of event types, by the one rule that relays and filters have, too.
type pattern = typepattern.Pattern

func clip(s string) string {
	if len(s) > 200 {
		return s[:200]
	}
	return s
}
