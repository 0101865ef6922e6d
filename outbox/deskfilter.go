package outbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postbus/postbus/internal/typepattern"
)

// ParkedFilter says which parked events are meant: those that meet all of what is
// set. The zero value means all of them, for looking; what acts on all of them wants
// that said, with All.
type ParkedFilter struct {
	// Types are event types and patterns, one of which the event's type must match:
	// "*" for every event, "order.*" for every event type below order, "order.placed".
	Types []string
	// Topic and Key, the partition key, must be equal.
	Topic string
	Key   string
	// Error must stand in the text of the last error, taken literally, in upper or
	// lower case.
	Error string
	// States are those one of which the event must be in.
	States []ParkedState
	// Since and Until bound when it was parked: at Since or later, before Until. By the
	// database's clock.
	Since, Until time.Time
	// All says that every event is meant. It goes with no other condition.
	All bool
}

// parkedStates are all that there are.
var parkedStates = []ParkedState{ParkedRetrying, ParkedWaiting, ParkedGivenUp, ParkedDiscarded}

// isEmpty tells whether the filter has no condition.
func (f ParkedFilter) isEmpty() bool {
	return len(f.Types) == 0 && f.Topic == "" && f.Key == "" && f.Error == "" && len(f.States) == 0 && f.Since.IsZero() && f.Until.IsZero()
}

// check reports all that is wrong with the filter.
func (f ParkedFilter) check() error {
	var faults []error
	for _, p := range f.Types {
		if err := typepattern.Valid(p); err != nil {
			faults = append(faults, fmt.Errorf("ParkedFilter.Types: %w", err))
		}
	}
	for field, s := range map[string]string{"Topic": f.Topic, "Key": f.Key, "Error": f.Error} {
		// A text that the database cannot hold is in no row: the caller means another.
		if fault := faultOfText(s); fault != "" {
			faults = append(faults, fmt.Errorf("ParkedFilter.%s %s, so that no event can have it: correct it", field, fault))
		}
	}
	for _, s := range f.States {
		if !slices.Contains(parkedStates, s) {
			faults = append(faults, fmt.Errorf("ParkedFilter.States has %.40q: use ParkedRetrying, ParkedWaiting, ParkedGivenUp or ParkedDiscarded", s))
		}
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		faults = append(faults, fmt.Errorf("ParkedFilter.Since is %s, Until %s: nothing lies between them, exchange them", f.Since.Format(time.RFC3339), f.Until.Format(time.RFC3339)))
	}
	if f.All && !f.isEmpty() {
		faults = append(faults, errors.New("ParkedFilter.All is set beside other conditions: leave it out, or them"))
	}
	if len(faults) > 0 {
		slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return fmt.Errorf("%w: %w", ErrInvalidRequest, errors.Join(faults...))
	}
	return nil
}

// where is the filter as SQL, behind "relay = $1", and its arguments from $2 on.
func (f ParkedFilter) where() (sql string, args []any) {
	var b strings.Builder
	and := func(condition string, arg any) {
		args = append(args, arg)
		fmt.Fprintf(&b, " AND "+condition, len(args)+1)
	}
	if len(f.Types) > 0 {
		and(`p.event_type LIKE ANY ($%d::text[])`, typepattern.Like(f.Types))
	}
	if f.Topic != "" {
		and(`p.topic = $%d::text`, f.Topic)
	}
	if f.Key != "" {
		and(`p.partition_key = $%d::text`, f.Key)
	}
	if f.Error != "" {
		and(`strpos(lower(p.last_error), lower($%d::text)) > 0`, f.Error) // not LIKE: nothing in it means anything else
	}
	if len(f.States) > 0 {
		states := make([]string, len(f.States))
		for i, s := range f.States {
			states[i] = string(s)
		}
		and(`p.state = ANY ($%d::text[])`, states)
	}
	if !f.Since.IsZero() {
		and(`p.parked_at >= $%d::timestamptz`, f.Since)
	}
	if !f.Until.IsZero() {
		and(`p.parked_at < $%d::timestamptz`, f.Until)
	}
	return b.String(), args
}

// faultOfText is what keeps a text from being in any row, or "".
func faultOfText(s string) string {
	switch {
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	case strings.ContainsRune(s, 0):
		return "has a NUL byte"
	}
	return ""
}
