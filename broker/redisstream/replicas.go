package redisstream

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/outbox"
)

// replicas are what has to confirm an addition: WAIT, in the pipeline of the
// additions, on whose connection it has to be.
type replicas struct {
	n       int
	timeout time.Duration
}

const defaultWaitTimeout = time.Second

// faults are those of PublisherConfig's WaitReplicas and WaitTimeout.
func (r replicas) faults(client redis.UniversalClient) (faults []error) {
	if r.n < 0 || r.n > 100 {
		faults = append(faults, fmt.Errorf("PublisherConfig.WaitReplicas is %d: give the number of replicas that must have an entry, or 0 to wait for none", r.n))
	}
	if r.timeout < 0 {
		faults = append(faults, fmt.Errorf("PublisherConfig.WaitTimeout is %s: give a positive duration, or 0 for %s", r.timeout, defaultWaitTimeout))
	}
	if r.n <= 0 {
		return faults
	}
	switch c := client.(type) {
	case *redis.ClusterClient:
		faults = append(faults, fmt.Errorf("PublisherConfig.WaitReplicas is %d with a *redis.ClusterClient, whose WAIT goes to any node and says nothing about ours: "+
			"leave it 0, and set min-replicas-to-write on the nodes", r.n))
	case *redis.Client:
		if c != nil && c.Options().ReadTimeout > 0 && c.Options().ReadTimeout <= r.patience() {
			faults = append(faults, fmt.Errorf("PublisherConfig.WaitTimeout is %s and the client's ReadTimeout %s, which would break the connection first: make it longer",
				r.patience(), c.Options().ReadTimeout))
		}
	}
	return faults
}

func (r replicas) patience() time.Duration {
	if r.timeout == 0 {
		return defaultWaitTimeout
	}
	return r.timeout
}

// command is nil if there is nothing to wait for. It asks for an answer in time for ctx.
func (r replicas) command(ctx context.Context) *redis.Cmd {
	if r.n == 0 {
		return nil
	}
	patience := r.patience()
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline)*3/4)
	}
	return redis.NewCmd(ctx, "wait", r.n, max(patience.Milliseconds(), 1)) // WAIT 0 would be for ever
}

// ReplicasError: Redis has added the message, and fewer replicas than
// PublisherConfig.WaitReplicas have confirmed it in time: a fail-over now might
// lose it. Its status is outbox.Unknown, so it is sent again. It wraps
// outbox.ErrUnavailable.
type ReplicasError struct {
	Stream string
	Asked  int
	Got    int // -1: no answer came
}

func (e *ReplicasError) Error() string {
	got := fmt.Sprintf("%d have confirmed it in time", e.Got)
	if e.Got < 0 {
		got = "how many have confirmed it is not known"
	}
	return fmt.Sprintf("add to stream %q: the message was added, %d replicas were to confirm it and %s; look at the replicas, or raise PublisherConfig.WaitTimeout",
		e.Stream, e.Asked, got)
}

func (e *ReplicasError) Unwrap() error { return outbox.ErrUnavailable }
