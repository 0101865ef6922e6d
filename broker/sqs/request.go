package sqs

import (
	"context"
	"errors"
	"time"

	"github.com/aws/smithy-go"
	"github.com/cenkalti/backoff/v5"

	"github.com/postbus/postbus/outbox"
)

// A request carries up to ten messages of one target. It owns what it carries, so
// that a call may leave it behind.
type request struct {
	of      *engine
	end     *end
	entries []entry
	results []outbox.Result
	flight  flight
}

// patienceThrottled is how often a request that was throttled, which means that
// nothing of it was accepted, is sent again by the same call.
const patienceThrottled = 4

// do sends the request and fills in the results.
func (r *request) do(ctx context.Context) {
	r.results = make([]outbox.Result, len(r.entries))
	pauses := &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: time.Second}
	for attempt := 1; ; attempt++ {
		replies, err := r.send(ctx, r.entries)
		if err == nil {
			r.answered(r.entries, r.results, replies)
			return
		}
		v, _, _, ok := judgeCall(err)
		if ok && v.throttled && attempt <= patienceThrottled && sleep(ctx, pauses.NextBackOff()) {
			continue
		}
		if ok && v.about == aboutOne && len(r.entries) > 1 {
			r.oneByOne(ctx)
			return
		}
		r.failed(r.entries, r.results, err)
		return
	}
}

func (r *request) send(ctx context.Context, entries []entry) ([]reply, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return r.of.targets.of.send(r.flight.watch(ctx), r.end.target, entries)
}

// oneByOne finds out which message it was that a whole request was refused for:
// each gets a request of its own.
func (r *request) oneByOne(ctx context.Context) {
	for k := range r.entries {
		replies, err := r.send(ctx, r.entries[k:k+1])
		if err != nil {
			r.failed(r.entries[k:k+1], r.results[k:k+1], err)
			continue
		}
		r.answered(r.entries[k:k+1], r.results[k:k+1], replies)
	}
}

func (r *request) answered(entries []entry, results []outbox.Result, replies []reply) {
	for k, reply := range replies {
		switch {
		case reply.accepted:
			results[k] = outbox.Result{Status: outbox.Done}
		case reply.code == "":
			results[k] = r.unanswered(true, errNoReply)
		default:
			results[k] = refused(r.end.name, entries[k].id, reply.code, reply.message, judgeEntry(reply.code, reply.theirs))
		}
	}
}

var errNoReply = errors.New("the answer does not mention the message")

// failed: the whole request was refused, or there is no answer.
func (r *request) failed(entries []entry, results []outbox.Result, err error) {
	v, code, reply, answered := judgeCall(err)
	if answered && v.about == aboutSum && len(entries) > 1 {
		v = verdict{status: outbox.Passing, wayOut: "the queue's MaximumMessageSize was lowered: it is looked up again"}
	}
	if answered && (v.about == aboutSum || v.status == outbox.Passing || v.is(ErrNoQueue)) {
		r.of.targets.forget(r.end.name)
	}
	for k := range results {
		if answered {
			results[k] = refused(r.end.name, entries[k].id, code, reply, v)
		} else {
			results[k] = r.unanswered(r.flight.sent() && !neverConnected(err), err)
		}
	}
}

// unanswered: what was not sent is safe to send again, what was may have been
// accepted.
func (r *request) unanswered(sent bool, err error) outbox.Result {
	if op := (*smithy.OperationError)(nil); errors.As(err, &op) {
		err = op.Err // without the SDK's preamble
	}
	cancelled := errors.Is(err, context.Canceled)
	status := outbox.Passing
	switch {
	case sent:
		status = outbox.Unknown
	case cancelled:
		status = outbox.NotAttempted
	}
	return outbox.Result{Status: status, Err: &CallError{Target: r.end.name, Sent: sent, Err: err, cancelled: cancelled}}
}

// sleep returns false if ctx ends first, or would.
func sleep(ctx context.Context, d time.Duration) bool {
	if end, some := ctx.Deadline(); some && time.Until(end) < d {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
