package redisstream

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/inflight"
)

// A sharded subscription is one member of those who share the shards of a topic.
// Each member reads as many shards as is fair, counted by who has given a sign of
// life lately, and gives up what is too much when another one joins.
type sharded struct {
	of      *Subscriber
	topic   string
	names   []string
	member  string
	members string // the key of the list of members
	outlet  *inflight.Outlet
	log     *slog.Logger

	mine    map[int]*shardReader // of run's goroutine
	readers sync.WaitGroup
	down    bool
}

// shardReader reads one shard, as long as its lease lasts.
type shardReader struct {
	stop     context.CancelFunc
	stopping bool
	ended    chan struct{}
}

// lookEvery is how often at most a member looks who is there, and which shard is free.
const lookEvery = time.Second

func newSharded(of *Subscriber, topic string) *sharded {
	member := of.cfg.Consumer
	if !of.ownName {
		member += "/" + freshName()
	}
	return &sharded{
		of: of, topic: topic, names: shardStreams(topic, of.cfg.Shards), member: member,
		members: "{" + topic + "}:members:" + of.cfg.Group,
		outlet:  inflight.NewOutlet(of.cfg.Shards * of.cfg.MaxInFlight),
		log:     of.cfg.Logger.With("topic", topic, "group", of.cfg.Group, "member", member),
		mine:    make(map[int]*shardReader),
	}
}

func (s *sharded) streams() []string { return s.names }

// start creates the group on every shard, so that a fault shows at once.
func (s *sharded) start(ctx context.Context) error {
	for _, name := range s.names {
		if err := newSubscription(ctx, s.of, name, shardConsumer, nil, nil).start(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *sharded) run(base, reading context.Context) {
	for {
		s.look(base, reading)
		if !sleep(reading, min(lookEvery, s.of.cfg.ClaimInterval)) {
			break
		}
	}
	s.readers.Wait() // each stops with reading, and gives up its lease
	s.leave(base)
	s.outlet.Close()
}

// aliveScript notes that a member lives, forgets those that have been silent, and
// answers who is there.
//
//	KEYS[1] the list; ARGV member, ms of silence after which one is forgotten
var aliveScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], 10 * ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, -1)
`)

// share is how many of n shards a member reads, of those who are there.
func share(members []string, member string, n int) int {
	members = slices.Sorted(slices.Values(members))
	rank := slices.Index(members, member)
	if rank < 0 {
		return 0
	}
	size := n / len(members)
	if rank < n%len(members) {
		size++
	}
	return size
}

// look gives up shards if there are too many, and takes up free ones if too few.
func (s *sharded) look(base, reading context.Context) {
	for k, r := range s.mine {
		select {
		case <-r.ended:
			delete(s.mine, k)
		default:
		}
	}
	members, err := within(reading, answerTimeout, func(ctx context.Context) ([]string, error) {
		return aliveScript.Run(ctx, s.of.cfg.Client, []string{s.members}, s.member, s.of.cfg.MinIdle.Milliseconds()).StringSlice()
	})
	if err != nil {
		s.broken(reading, err)
		return
	}
	fair := share(members, s.member, len(s.names))
	held := 0
	for k := range s.names {
		r := s.mine[k]
		switch {
		case r == nil || r.stopping:
		case held == fair:
			r.stopping = true
			r.stop()
		default:
			held++
		}
	}
	first := ShardOf(s.member, len(s.names)) // members begin to look at different ones
	for i := range s.names {
		k := (first + i) % len(s.names)
		if held >= fair {
			break
		}
		if s.mine[k] != nil {
			continue
		}
		l := newLease(s.names[k], s.of.cfg.Group, s.member+"/"+freshName(), s.of.cfg.MinIdle)
		until := time.Now().Add(l.ttl)
		got, err := within(reading, answerTimeout, func(ctx context.Context) (bool, error) { return l.acquire(ctx, s.of.cfg.Client) })
		if err != nil {
			l.release(base, s.of.cfg.Client) // the answer may have been lost
			s.broken(reading, err)
			return
		}
		if got {
			s.takeUp(base, reading, k, l, until)
			held++
		}
	}
	if s.down {
		s.down = false
		s.log.Info("sharing the topic's shards again")
	}
}

func (s *sharded) broken(reading context.Context, err error) {
	if !s.down && reading.Err() == nil {
		s.down = true
		s.log.Warn("sharing the topic's shards is interrupted and tried again", "error", err)
	}
}

// takeUp reads a shard until reading ends, the shard is given up, or its lease is lost.
func (s *sharded) takeUp(base, reading context.Context, k int, l *lease, until time.Time) {
	ctx, stop := context.WithCancel(reading)
	r := &shardReader{stop: stop, ended: make(chan struct{})}
	s.mine[k] = r
	s.readers.Go(func() {
		defer close(r.ended)
		defer stop()
		defer l.release(base, s.of.cfg.Client)
		sub := newSubscription(base, s.of, s.names[k], shardConsumer, l, s.outlet)
		if sub.start(ctx) != nil {
			return // the next look tries again
		}
		held, letGo := context.WithCancel(base)
		var renewal sync.WaitGroup
		renewal.Go(func() { sub.keepLease(held, stop, until) })
		sub.run(base, ctx)
		letGo()
		renewal.Wait()
	})
}

// keepLease renews the lease until held ends. When it is lost, or could not be
// renewed for as long as it lasts, all that is in flight is cancelled and the
// shard's reader stopped.
func (s *subscription) keepLease(held context.Context, stop context.CancelFunc, until time.Time) {
	every := s.lease.ttl / 3
	for wait := every; ; {
		select {
		case <-held.Done():
			return
		case <-s.lease.doubt:
		case <-time.After(wait):
		}
		asked := time.Now()
		ours, err := within(held, min(answerTimeout, max(time.Until(until), time.Millisecond)), func(ctx context.Context) (bool, error) {
			return s.lease.renew(ctx, s.of.cfg.Client)
		})
		switch {
		case held.Err() != nil:
			return
		case err == nil && ours:
			until, wait = asked.Add(s.lease.ttl), every
			continue
		case err != nil && time.Now().Before(until):
			wait = min(every/4, time.Until(until))
			continue
		}
		n := s.room.Lose(func(*entry) bool { return true }, ErrLost)
		s.log.Warn("a shard's lease was lost, because it could not be renewed; another member reads the shard", "count", n)
		stop()
		return
	}
}

// leave strikes this member off the list, so that the others need not wait.
func (s *sharded) leave(base context.Context) {
	_, _ = within(base, answerTimeout, func(ctx context.Context) (int64, error) {
		return s.of.cfg.Client.ZRem(ctx, s.members, s.member).Result()
	})
}
