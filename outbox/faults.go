package outbox

import (
	"fmt"
	"time"

	"github.com/postbus/postbus/internal/typepattern"
	"github.com/postbus/postbus/migrations"
)

// faults collects all that is wrong with a config, and fills in what is zero.
type faults struct {
	of  string // the config's type
	all []error
}

func (f *faults) add(format string, args ...any) {
	f.all = append(f.all, fmt.Errorf(f.of+"."+format, args...))
}

func (f *faults) name(name, example string) {
	if !relayName.MatchString(name) {
		f.add("Name is %.120q: give it 1 to 100 lower-case letters, digits, dots, dashes or underscores, for example %q; it names the position for ever", name, example)
	}
}

func (f *faults) schema(schema *string) {
	if *schema == "" {
		*schema = migrations.DefaultSchema
	}
	if err := migrations.CheckSchema(*schema); err != nil {
		f.add("Schema: %w", err)
	}
}

func (f *faults) startAt(at StartAt) {
	if at < FromNow {
		f.add("StartAt is %d: use FromBeginning, FromNow or FromTime(t)", at)
	}
}

func (f *faults) types(patterns []string) {
	for _, p := range patterns {
		if err := typepattern.Valid(p); err != nil {
			f.add("Types: %w", err)
		}
	}
}

func (f *faults) policy(p Policy) {
	if p > SkipKey {
		f.add("Policy is %d: use BlockKey or SkipKey", p)
	}
}

func (f *faults) number(name string, v *int, def, most int) {
	if *v == 0 {
		*v = def
	}
	if *v < 1 || *v > most {
		f.add("%s is %d: use 1 to %d, or 0 for the default of %d", name, *v, most, def)
	}
}

func (f *faults) span(name string, v *time.Duration, def, least time.Duration) {
	if *v == 0 {
		*v = def
	}
	if *v < least {
		f.add("%s is %s: use at least %s, or 0 for the default of %s", name, *v, least, def)
	}
}

func (f *faults) retry(r *RetryConfig) {
	f.number("Retry.MaxAttempts", &r.MaxAttempts, 20, 1_000_000)
	f.span("Retry.Initial", &r.Initial, 100*time.Millisecond, time.Millisecond)
	f.span("Retry.Max", &r.Max, max(time.Minute, r.Initial), r.Initial)
	if r.Multiplier == 0 {
		r.Multiplier = 2
	}
	if !(r.Multiplier >= 1 && r.Multiplier <= 100) {
		f.add("Retry.Multiplier is %v: use 1 to 100, or 0 for the default of 2", r.Multiplier)
	}
}

// parked checks the caps on what is put aside.
func (f *faults) parked(events *int, bytes *int64) {
	f.number("MaxParked", events, 100_000, 100_000_000)
	if *bytes == 0 {
		*bytes = 1 << 30
	}
	if *bytes < 1 {
		f.add("MaxParkedBytes is %d: use at least 1, or 0 for the default of 1 GiB", *bytes)
	}
}
