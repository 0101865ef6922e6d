package outbox

import (
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/postbus/postbus/internal/reason"
)

// settle turns the results of a call into states. Sent events are settled, or,
// if parked, reported to be completed; failed ones block their key. attempted is
// false if the publisher has tried nothing.
func (l *lane) settle(batch []*item, results []Result, probe bool) (attempted bool) {
	now := time.Now()
	done, unavailable := 0, false
	var failed []laneKey
	for i, r := range results {
		switch r.Status {
		case Done:
			done++
		case Passing, Permanent, Unknown:
			failed = append(failed, keyOf(batch[i]))
			unavailable = unavailable || errors.Is(r.Err, ErrUnavailable)
		}
	}
	counts := l.t.health.report(now, probe, done, failed, unavailable)

	l.mu.Lock()
	var touched []*keyQueue
	var unsent []*item
	for i, it := range batch {
		q := l.keys[keyOf(it)]
		switch {
		case results[i].Status == Done:
			l.sent(it, q)
		case results[i].Status == NotAttempted && q == nil:
			unsent = append(unsent, it) // nothing of its key fails: it flows on
		default:
			q = l.queue(keyOf(it))
			l.failed(it, q, results[i], counts, now)
		}
		if q != nil && (len(touched) == 0 || touched[len(touched)-1] != q) {
			touched = append(touched, q)
		}
	}
	for _, q := range touched {
		q.busy = false
		l.settleQueue(q)
	}
	if len(unsent) > 0 {
		l.fifo = append(unsent, l.fifo...)
	}
	l.mu.Unlock()
	l.t.progress()
	return done > 0 || len(failed) > 0
}

func (l *lane) sent(it *item, q *keyQueue) {
	if q != nil {
		q.remove(it)
		q.due = time.Time{} // what waits behind it goes on at once
	}
	if it.parked {
		l.t.complete(completion{it: it, kind: doneSent})
	}
	it.state.Store(stSettled)
}

// failed notes a failure and puts the event at its place in its key's queue.
func (l *lane) failed(it *item, q *keyQueue, r Result, counts bool, now time.Time) {
	if it.state.Load() == stQueued {
		q.insert(it)
	}
	if r.Status == NotAttempted {
		l.hold(it)
		return
	}
	if it.failedAt.IsZero() {
		it.failedAt = now
	}
	it.lastErr = errorText(r.Err)
	it.tries++
	if counts {
		it.attempts++
	}
	if it.retry == nil {
		it.retry = l.t.cfg.Retry.backoff(it.attempts)
	}
	after := it.retry.NextBackOff()
	q.due = now.Add(after)
	// An unknown outcome is never given up: it may have been accepted. Neither is
	// anything while the broker accepts nothing at all.
	exhausted := r.Status == Passing && it.attempts >= l.t.cfg.Retry.MaxAttempts
	if counts && (r.Status == Permanent || exhausted) {
		it.giveUp = true
	}
	l.tellFailure(it, after)
	if it.parked && counts {
		kind := doneTried
		if it.giveUp {
			kind = doneGivenUp
		}
		l.t.complete(completion{it: it, kind: kind, attempts: it.attempts, lastErr: it.lastErr})
	}
	l.hold(it)
}

func (l *lane) tellFailure(it *item, after time.Duration) {
	hook := l.t.hooks.Retried
	if it.giveUp {
		hook, after = l.t.hooks.GivenUp, 0
	}
	told(l.t.log, hook, FailureInfo{Name: l.t.who.name, LogID: it.LogID, EventID: it.EventID, EventType: it.EventType, Key: it.Key, Attempts: it.attempts, Error: it.lastErr, After: after})
}

func (l *lane) hold(it *item) {
	if it.parked {
		it.state.Store(stParked)
	} else {
		it.state.Store(stHeld)
	}
}

// backoff gives the schedule as it stands after attempts failures, so that it goes
// on where an earlier holder left it.
func (r RetryConfig) backoff(attempts int) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = r.Initial, r.Max, r.Multiplier
	for range min(attempts-1, 100) {
		if b.InitialInterval = time.Duration(float64(b.InitialInterval) * b.Multiplier); b.InitialInterval >= b.MaxInterval {
			b.InitialInterval = b.MaxInterval
			break
		}
	}
	b.Reset()
	return b
}

// errorText is what is kept of an error: bounded, fit for a text column and a log,
// without what looks like a credential.
func errorText(err error) string {
	if err == nil {
		return "the publisher gave no error"
	}
	return reason.Of(err)
}
