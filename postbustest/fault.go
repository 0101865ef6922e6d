package postbustest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/outbox"
)

// Fault is what becomes of a message that a [Rule] is for. See [Refuse],
// [RefuseForGood], [Unavailable], [LoseMessage], [LoseAnswer], [Hang] and [Slow].
type Fault struct {
	name    string
	status  outbox.Status
	err     error
	accepts bool          // the message is in the broker all the same
	hangs   bool          // until the rule is stopped
	delay   time.Duration // or so long
}

var (
	errRefused     = errors.New("refused by the test's broker")
	errMessageLost = errors.New("the test's broker lost the message on its way")
	errAnswerLost  = errors.New("the test's broker lost its answer")
	errGone        = errors.New("the call ended before the test's broker answered")
)

// Refuse refuses the message for now (outbox.Passing). err may be nil.
func Refuse(err error) Fault {
	return Fault{name: "Refuse", status: outbox.Passing, err: orDefault(err, errRefused)}
}

// RefuseForGood refuses the message for ever (outbox.Permanent). err may be nil;
// what the relay gets wraps outbox.ErrPermanent, too.
func RefuseForGood(err error) Fault {
	return Fault{name: "RefuseForGood", status: outbox.Permanent, err: fmt.Errorf("%w: %w", outbox.ErrPermanent, orDefault(err, errRefused))}
}

// Unavailable is a broker that cannot be reached as a whole: the error wraps
// outbox.ErrUnavailable.
func Unavailable() Fault {
	return Fault{name: "Unavailable", status: outbox.Passing, err: fmt.Errorf("the test's broker is down: %w", outbox.ErrUnavailable)}
}

// LoseMessage gives an unknown outcome; the broker has not got the message.
func LoseMessage() Fault {
	return Fault{name: "LoseMessage", status: outbox.Unknown, err: errMessageLost}
}

// LoseAnswer gives an unknown outcome; the broker has accepted the message. A relay
// sends it again: consumers see it twice.
func LoseAnswer() Fault {
	return Fault{name: "LoseAnswer", status: outbox.Unknown, err: errAnswerLost, accepts: true}
}

// Hang keeps the call, and all that it carries, until [Rule.Stop]; then the message
// is accepted. If the call's deadline comes first the outcome is unknown, and the
// broker has not got it.
func Hang() Fault {
	return Fault{name: "Hang", status: outbox.Done, accepts: true, hangs: true}
}

// Slow accepts the message after d, or at [Rule.Stop]. If the call's deadline comes
// first the outcome is unknown, and the broker has not got it.
func Slow(d time.Duration) Fault {
	return Fault{name: "Slow", status: outbox.Done, accepts: true, delay: d}
}

func orDefault(err, otherwise error) error {
	if err == nil {
		return otherwise
	}
	return err
}

// play gives the outcome, after the time that it takes.
func (f Fault) play(ctx context.Context, stopped <-chan struct{}) (accepts bool, _ outbox.Result) {
	if f.hangs || f.delay > 0 {
		var over <-chan time.Time
		if !f.hangs {
			timer := time.NewTimer(f.delay)
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-over:
		case <-stopped:
		case <-ctx.Done():
			return false, outbox.Result{Status: outbox.Unknown, Err: fmt.Errorf("%w: %w", errGone, context.Cause(ctx))}
		}
	}
	return f.accepts, outbox.Result{Status: f.status, Err: f.err}
}

// When says which attempts to publish a fault is for. The zero value: all.
type When struct {
	Key  string // of this partition key. Defaults to any.
	Type string // of this event type. Defaults to any.

	// Nth picks one of the attempts that fit Key and Type, counted from 1. Defaults
	// to all of them.
	Nth int
	// First picks the first so many of them. Defaults to all. Not together with Nth.
	First int
}

func (w When) String() string {
	var parts []string
	if w.Key != "" {
		parts = append(parts, fmt.Sprintf("of key %q", w.Key))
	}
	if w.Type != "" {
		parts = append(parts, "of type "+w.Type)
	}
	if w.Nth > 0 {
		parts = append(parts, fmt.Sprintf("number %d", w.Nth))
	}
	if w.First > 0 {
		parts = append(parts, fmt.Sprintf("the first %d", w.First))
	}
	if len(parts) == 0 {
		return "all attempts"
	}
	return "attempts " + strings.Join(parts, ", ")
}

// Rule is a fault in force.
type Rule struct {
	broker  *Broker
	when    When
	fault   Fault
	seen    int           // attempts that fit Key and Type; guarded by broker.mu, as hits is
	hits    int           // of those, the ones that got the fault
	stopped chan struct{} // closed by Stop; under broker.mu
}

// On has the broker answer with f from now on, for the attempts that w picks, until
// the rule is stopped or the test ends. Where several rules fit an attempt, the one
// given last holds; each of them counts it.
func (b *Broker) On(t testing.TB, w When, f Fault) *Rule {
	t.Helper()
	if w.Nth < 0 || w.First < 0 || w.Nth > 0 && w.First > 0 {
		t.Fatalf("Broker.On: When.Nth is %d and When.First is %d: use one of them, from 1 on, or 0 for all attempts", w.Nth, w.First)
	}
	if f.name == "" {
		t.Fatal("Broker.On: the fault is empty: use Refuse, RefuseForGood, Unavailable, LoseMessage, LoseAnswer, Hang or Slow")
	}
	r := &Rule{broker: b, when: w, fault: f, stopped: make(chan struct{})}
	b.mu.Lock()
	b.rules = append(b.rules, r)
	b.mu.Unlock()
	t.Cleanup(r.Stop) // or a call that hangs would outlive the test
	return r
}

// Stop ends the rule: the broker has recovered. What hangs is accepted. Any number
// of calls is fine.
func (r *Rule) Stop() {
	r.broker.mu.Lock()
	defer r.broker.mu.Unlock()
	if !r.isStopped() {
		close(r.stopped)
	}
}

// Hits is how many attempts got the fault so far.
func (r *Rule) Hits() int {
	r.broker.mu.Lock()
	defer r.broker.mu.Unlock()
	return r.hits
}

// WaitHits waits until n attempts got the fault, for example until a call hangs. It
// fails the test if they do not come within ten seconds, or within [Within].
func (r *Rule) WaitHits(t testing.TB, n int, opts ...WaitOption) {
	t.Helper()
	if limit, ok := r.broker.changes.wait(func() bool { return r.Hits() >= n }, opts); !ok {
		t.Fatalf("wait for %d hits of the fault %s (%s): there were %d within %s; the broker has accepted%s",
			n, r.fault.name, r.when, r.Hits(), limit, listMessages(r.broker.Messages()))
	}
}

func (r *Rule) isStopped() bool {
	select {
	case <-r.stopped:
		return true
	default:
		return false
	}
}

// ruleFor counts an attempt and gives the rule that it gets, or nil. The caller
// holds b.mu.
func (b *Broker) ruleFor(m *outbox.Message) (found *Rule) {
	for _, r := range b.rules {
		if r.isStopped() || r.when.Key != "" && r.when.Key != m.Key || r.when.Type != "" && r.when.Type != m.EventType {
			continue
		}
		r.seen++
		if (r.when.Nth == 0 || r.seen == r.when.Nth) && (r.when.First == 0 || r.seen <= r.when.First) {
			found = r
		}
	}
	if found != nil {
		found.hits++
	}
	return found
}
