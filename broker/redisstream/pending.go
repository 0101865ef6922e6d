package redisstream

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
)

// claim takes over one entry that its consumer has been silent about for
// MinIdle. That may be an entry of our own name, whose delivery was lost with a
// connection; never one that is in flight here, because that is kept fresh.
func (s *subscription) claim(ctx context.Context) (e *entry, some bool, err error) {
	var found *redis.XAutoClaimWithDeletedCmd
	err = s.call(ctx, 0, func(ctx context.Context) error {
		return runOnce(ctx, s.of.cfg.Client, func(q redis.Pipeliner) {
			found = q.XAutoClaimWithDeleted(ctx, &redis.XAutoClaimArgs{Stream: s.stream, Group: s.of.cfg.Group,
				Consumer: s.consumer, MinIdle: s.of.cfg.MinIdle, Start: s.claimFrom, Count: 1})
		})
	})
	if err != nil {
		return nil, false, err
	}
	entries, next, deleted := found.Val()
	for _, id := range deleted { // Redis 7 has already taken them off the pending list
		s.gone(id)
	}
	s.claimFrom = next
	if next == "0-0" {
		s.claimFrom, s.nextClaim = fromStart, time.Now().Add(s.of.cfg.ClaimInterval)
	}
	if len(entries) == 0 {
		return nil, next != "0-0", nil // look further before anything new
	}
	e, err = s.pendingEntry(ctx, entries[0])
	return e, true, err
}

// pendingEntry is an entry that has been delivered before: with the count of
// deliveries, or nil if it has been deleted since.
func (s *subscription) pendingEntry(ctx context.Context, m redis.XMessage) (*entry, error) {
	if m.Values == nil {
		err := s.call(ctx, 0, func(ctx context.Context) error {
			return s.of.cfg.Client.XAck(ctx, s.stream, s.of.cfg.Group, m.ID).Err()
		})
		if err == nil {
			s.gone(m.ID)
		}
		return nil, err
	}
	e := &entry{id: m.ID, values: m.Values, deliveries: 1}
	return e, s.call(ctx, 0, func(ctx context.Context) error {
		pending, err := s.of.cfg.Client.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: s.stream, Group: s.of.cfg.Group,
			Start: m.ID, End: m.ID, Count: 1}).Result()
		if err == nil && len(pending) == 1 {
			e.deliveries = pending[0].RetryCount
		}
		return err
	})
}

// gone: an entry was trimmed or deleted while it was pending. It is lost to this group.
func (s *subscription) gone(id string) {
	s.log.Warn("an entry was trimmed or deleted before this group had handled it; nothing trims a stream safely but XTRIM MINID below what every group has handled",
		"entry", id, "total", s.of.missing.Add(1))
}

// keepScript sets the idle time of a pending entry, if it is still ours, and
// its delivery count, if one is given; XCLAIM with JUSTID leaves the count
// alone otherwise. Without the look at the owner a consumer that had been
// stopped for a while would take back what another one is handling. It answers
// 1, 0 if the entry is another consumer's, -1 if it is not pending at all.
//
//	KEYS[1] the stream; ARGV group, consumer, entry id, idle ms, delivery count or ""
var keepScript = redis.NewScript(`
local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if #p == 0 then return -1 end
if p[1][2] ~= ARGV[2] then return 0 end
if ARGV[5] == '' then
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[4], 'JUSTID')
else
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[4], 'RETRYCOUNT', ARGV[5], 'JUSTID')
end
return 1
`)

// keep says that e is still being worked on; count, unless nil, is its delivery
// count. It notes on e when another consumer has taken it. An entry that was
// trimmed meanwhile, or whose group is gone, is handled to the end. When Redis
// does not answer, the next tick tries again.
func (s *subscription) keep(base context.Context, e *entry, count any) {
	if count == nil {
		count = ""
	}
	_ = s.call(base, 0, func(ctx context.Context) error {
		owned, err := keepScript.Run(ctx, s.of.cfg.Client, []string{s.stream},
			s.of.cfg.Group, s.consumer, e.id, 0, count).Int()
		if err == nil && owned == 0 && !e.lost {
			e.lost = true
			s.log.Warn("another consumer has claimed an entry that is in flight here, because it could not be kept fresh", "entry", e.id)
		}
		return err
	})
}

// release gives an entry back that has not been handled: it is made to look
// silent for MinIdle, so that any consumer of the group takes it at its next
// look. If Redis does not answer, that happens by itself, after MinIdle.
func (s *subscription) release(base context.Context, e *entry) {
	_ = s.call(base, 0, func(ctx context.Context) error {
		return keepScript.Run(ctx, s.of.cfg.Client, []string{s.stream},
			s.of.cfg.Group, s.consumer, e.id, s.of.cfg.MinIdle.Milliseconds(), "").Err()
	})
}

// removeScript removes a consumer that holds nothing: what it held would be
// lost with it, so look and removal are one step.
//
//	KEYS[1] the stream; ARGV group, consumer
var removeScript = redis.NewScript(`
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
`)

// removeConsumer tidies up after a consumer whose name was made for this process only.
func (s *subscription) removeConsumer(base context.Context) {
	if s.down {
		return
	}
	_ = s.call(base, 0, func(ctx context.Context) error {
		return removeScript.Run(ctx, s.of.cfg.Client, []string{s.stream}, s.of.cfg.Group, s.consumer).Err()
	})
}
