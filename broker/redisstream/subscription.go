package redisstream

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/inflight"
)

// A subscription is one member of the group on one stream. Its reader finds
// entries and puts them into a room, from which they are handled, several at a
// time and in order by key; its keeper acknowledges what was handled and keeps the
// rest fresh. reader.go and keeper.go.
type subscription struct {
	of       *Subscriber
	stream   string
	consumer string
	lease    *lease // of a shard; nil for a stream that the members of the group read together
	room     *inflight.Room[*entry]
	log      *slog.Logger

	mu       sync.Mutex
	held     map[string]struct{} // ids of entries that are in the room, or still to be acknowledged
	looking  bool                // the reader looks through what may be held
	dropped  map[string]struct{} // and these have gone meanwhile: its answer may still name them
	recounts []*entry            // nacked: their counts are to be told to Redis
	kick     chan struct{}       // cap 1: there are recounts

	// of the reader: what to look at before anything new
	ownFirst  bool   // our own pending entries, of before a restart or a broken connection
	ownFrom   string // where the look through them stands
	claimFrom string // where the search for dead consumers' entries stands
	nextClaim time.Time

	newestSeen string // under a lease: the id from which to wait for more

	// floor is where a FromNow group begins again if it is lost while the stream is not.
	floor string

	down    bool // reading is broken, and that has been said
	backoff *backoff.ExponentialBackOff

	// of the keeper
	owed []string // handled, and to be acknowledged
	back []*entry // not handled, and to be given back
}

const (
	fromStart = "0" // before the first entry; for XAUTOCLAIM: begin, or: all seen ("0-0")
	fromNew   = ">" // what no consumer of the group has got yet

	// readBlock is how long Redis waits for a new entry before it answers that
	// there is none; closing may take that long, since go-redis cannot interrupt it.
	readBlock = 500 * time.Millisecond

	// closeGrace is what a handler gets after its context was cancelled, and an
	// acknowledgement that Redis does not answer; never more than CloseTimeout.
	closeGrace = 2 * time.Second
)

func (s *subscription) grace() time.Duration { return min(closeGrace, s.of.cfg.CloseTimeout) }

// newSubscription makes the messages' contexts from ctx, but not their end.
func newSubscription(ctx context.Context, of *Subscriber, stream, consumer string, l *lease, outlet *inflight.Outlet) *subscription {
	s := &subscription{
		of: of, stream: stream, consumer: consumer, lease: l,
		log:      of.cfg.Logger.With("stream", stream, "group", of.cfg.Group, "consumer", consumer),
		held:     make(map[string]struct{}),
		dropped:  make(map[string]struct{}),
		kick:     make(chan struct{}, 1),
		ownFirst: true, ownFrom: fromStart, claimFrom: fromStart,
		backoff: &backoff.ExponentialBackOff{InitialInterval: 50 * time.Millisecond, RandomizationFactor: 0.5,
			Multiplier: 2, MaxInterval: 5 * time.Second},
	}
	s.room = inflight.New(ctx, inflight.Config[*entry]{
		Build:       s.message,
		Nacked:      s.nacked,
		MaxInFlight: of.cfg.MaxInFlight,
		MaxBuffered: of.cfg.MaxInFlight + max(of.cfg.ReadAhead, 0),
		NackDelay:   of.cfg.NackDelay, MaxNackDelay: of.cfg.MaxNackDelay,
		CloseTimeout: of.cfg.CloseTimeout, CloseGrace: s.grace(), CloseCause: ErrCloseTimeout,
		Outlet: outlet,
	})
	return s
}

// start creates the group, and the stream for it, unless they exist.
func (s *subscription) start(ctx context.Context) error {
	position := fromStart
	if s.of.cfg.Start == FromNow {
		position = "$"
	}
	if err := s.createGroup(ctx, position); err != nil {
		return err
	}
	if s.of.cfg.Start == FromNow {
		return s.findFloor(ctx)
	}
	return nil
}

func (s *subscription) createGroup(ctx context.Context, position string) error {
	err := s.call(ctx, 0, func(ctx context.Context) error {
		return runOnce(ctx, s.of.cfg.Client, func(q redis.Pipeliner) {
			q.XGroupCreateMkStream(ctx, s.stream, s.of.cfg.Group, position)
		})
	})
	switch {
	case err == nil || strings.HasPrefix(err.Error(), "BUSYGROUP"): // somebody else has created it
		return nil
	case strings.HasPrefix(err.Error(), "WRONGTYPE"):
		return fmt.Errorf("%w; the key of that name is no stream: rename the topic or the key", err)
	}
	return err
}

// call runs one command with a deadline. The context's end keeps it from being
// sent, and does not cut off its answer.
func (s *subscription) call(ctx context.Context, waits time.Duration, f func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), waits+answerTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return f(bounded)
}

// run reads until reading ends, and returns when all that was read is
// acknowledged, given back or abandoned.
func (s *subscription) run(base, reading context.Context) {
	var helpers sync.WaitGroup
	helpers.Go(func() { s.keep(base) })
	helpers.Go(func() {
		<-reading.Done()
		for _, e := range s.room.Close() {
			s.of.abandoned.Add(1)
			s.log.Warn("a handler has not come back in time to close; the entry stays pending and is delivered again", "entry", e.id)
		}
	})
	late := s.read(reading)
	helpers.Wait()
	s.release(base, late)
	if s.of.ownName && s.lease == nil {
		s.removeConsumer(base)
	}
}

// lookBack says that the next entries to be held are looked for among those that
// were delivered before.
func (s *subscription) lookBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looking = true
}

// hold notes entries that are ours to settle, and returns those that were not
// noted yet: a look at our own pending entries also finds what we are at.
func (s *subscription) hold(entries []*entry) []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := entries[:0]
	for _, e := range entries {
		_, held := s.held[e.id]
		_, gone := s.dropped[e.id]
		if !held && !gone {
			s.held[e.id] = struct{}{}
			fresh = append(fresh, e)
		}
	}
	s.looking = false
	clear(s.dropped)
	return fresh
}

// drop notes that entries are not ours to settle any more.
func (s *subscription) drop(ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.held, id)
		if s.looking {
			s.dropped[id] = struct{}{}
		}
	}
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// streams are those it reads.
func (s *subscription) streams() []string { return []string{s.stream} }
