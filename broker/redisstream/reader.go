package redisstream

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/inflight"
)

// maxRead bounds the entries of one XREADGROUP: Redis does nothing else while it
// gathers them.
const maxRead = 1000

// read fills the room, through any trouble, until reading ends. It returns what
// came too late for the room.
func (s *subscription) read(reading context.Context) (late []*entry) {
	var deliveries []inflight.Delivery[*entry]
	for {
		if s.room.AwaitRoom(reading, max(s.of.cfg.ReadAhead, 1)) != nil {
			return nil
		}
		entries, err := s.fetch(reading, min(s.room.Free(), maxRead))
		switch {
		case err == nil:
			s.working()
		case reading.Err() != nil:
		case isLeaseLost(err): // whoever renews it stops us
			select {
			case s.lease.doubt <- struct{}{}:
			default:
			}
			sleep(reading, time.Second)
		case isGroupLost(err):
			if err = s.heal(reading); err != nil {
				s.broken(reading, err)
			}
		default:
			s.broken(reading, err)
		}
		entries = s.hold(entries)
		deliveries = deliveries[:0]
		for _, e := range entries {
			s.decode(e)
			deliveries = append(deliveries, inflight.Delivery[*entry]{Key: e.key, Size: e.size, Token: e})
		}
		if s.room.Add(deliveries) != nil {
			return entries
		}
		clear(deliveries)
	}
}

// fetch looks for entries, n at most: first what is already ours, then what a
// dead consumer held, then what is new. None and no error: there are none as yet.
// Of what it has got beside an error, the entries are good.
func (s *subscription) fetch(reading context.Context, n int) ([]*entry, error) {
	if s.ownFirst {
		entries, some, err := s.own(reading, n)
		if some || err != nil {
			return entries, err
		}
		s.ownFirst = false
	}
	if s.lease == nil && !time.Now().Before(s.nextClaim) {
		entries, some, err := s.claim(reading, n)
		if some || err != nil {
			return entries, err
		}
	}
	block := readBlock
	if s.lease == nil {
		block = max(min(readBlock, time.Until(s.nextClaim)), time.Millisecond) // BLOCK 0 would be for ever
	}
	found, err := s.readGroup(reading, fromNew, n, block)
	entries := make([]*entry, len(found))
	made := make([]entry, len(found))
	for i, m := range found {
		made[i] = entry{id: m.ID, values: m.Values, deliveries: 1}
		entries[i] = &made[i]
	}
	return entries, err
}

func (s *subscription) readGroup(ctx context.Context, from string, n int, block time.Duration) ([]redis.XMessage, error) {
	if s.lease != nil {
		return s.readLeased(ctx, from, n, block)
	}
	var found *redis.XStreamSliceCmd
	err := s.call(ctx, max(block, 0), func(ctx context.Context) error {
		return runOnce(ctx, s.of.cfg.Client, func(q redis.Pipeliner) {
			found = q.XReadGroup(ctx, &redis.XReadGroupArgs{Group: s.of.cfg.Group, Consumer: s.consumer,
				Streams: []string{s.stream, from}, Count: int64(n), Block: block})
		})
	})
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if err != nil || len(found.Val()) == 0 {
		return nil, err
	}
	return found.Val()[0].Messages, nil
}

// own looks through our own pending entries; some says that there were any.
func (s *subscription) own(ctx context.Context, n int) (entries []*entry, some bool, err error) {
	s.lookBack()
	found, err := s.readGroup(ctx, s.ownFrom, n, -1)
	if err != nil || len(found) == 0 {
		return nil, false, err
	}
	if entries, err = s.pendingEntries(ctx, found); err != nil {
		return nil, false, err
	}
	s.ownFrom = found[len(found)-1].ID
	return entries, true, nil
}

// claim takes over entries that their consumer has been silent about for
// MinIdle. They may be of our own name, if their delivery was lost with a
// connection; what is in flight here is kept fresh.
func (s *subscription) claim(ctx context.Context, n int) (entries []*entry, some bool, err error) {
	s.lookBack()
	var found *redis.XAutoClaimWithDeletedCmd
	err = s.call(ctx, 0, func(ctx context.Context) error {
		return runOnce(ctx, s.of.cfg.Client, func(q redis.Pipeliner) {
			found = q.XAutoClaimWithDeleted(ctx, &redis.XAutoClaimArgs{Stream: s.stream, Group: s.of.cfg.Group,
				Consumer: s.consumer, MinIdle: s.of.cfg.MinIdle, Start: s.claimFrom, Count: int64(n)})
		})
	})
	if err != nil {
		return nil, false, err
	}
	claimed, next, deleted := found.Val()
	for _, id := range deleted { // Redis 7 has already taken them off the pending list
		s.gone(id)
	}
	if len(claimed) > 0 {
		if entries, err = s.pendingEntries(ctx, claimed); err != nil {
			return nil, false, err // they are found among our own
		}
	}
	s.claimFrom = next
	if next == "0-0" {
		s.claimFrom, s.nextClaim = fromStart, time.Now().Add(s.of.cfg.ClaimInterval)
	}
	return entries, len(claimed) > 0 || next != "0-0", nil // look further before anything new
}

// pendingEntries are entries that have been delivered before: with the count of
// deliveries, and without those that have been deleted since.
func (s *subscription) pendingEntries(ctx context.Context, found []redis.XMessage) ([]*entry, error) {
	var pipe []*redis.XPendingExtCmd
	var missing []string
	err := s.call(ctx, 0, func(ctx context.Context) error {
		pipe, missing = pipe[:0], missing[:0]
		_, err := s.of.cfg.Client.Pipelined(ctx, func(q redis.Pipeliner) error {
			for _, m := range found {
				if m.Values == nil {
					missing = append(missing, m.ID)
				}
				pipe = append(pipe, q.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: s.stream, Group: s.of.cfg.Group,
					Start: m.ID, End: m.ID, Count: 1}))
			}
			if len(missing) > 0 {
				q.XAck(ctx, s.stream, s.of.cfg.Group, missing...)
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, id := range missing {
		s.gone(id)
	}
	entries := make([]*entry, 0, len(found))
	for i, m := range found {
		if m.Values == nil {
			continue
		}
		e := &entry{id: m.ID, values: m.Values, deliveries: 1}
		if p := pipe[i].Val(); len(p) == 1 {
			e.deliveries = p[0].RetryCount
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// gone: an entry was trimmed or deleted while it was pending. It is lost to this group.
func (s *subscription) gone(id string) {
	s.log.Warn("an entry was trimmed or deleted before this group had handled it; nothing trims a stream safely but XTRIM MINID below what every group has handled",
		"entry", id, "total", s.of.missing.Add(1))
}

// working and broken say a change of state once, however long it lasts.
func (s *subscription) working() {
	if s.down {
		s.down = false
		s.log.Info("reading the stream again")
	}
	s.backoff.Reset()
}

func (s *subscription) broken(reading context.Context, err error) {
	if !s.down {
		s.down = true
		s.log.Warn("reading the stream is interrupted and tried again", "error", err)
	}
	// An answer may have been lost after Redis had made entries ours.
	s.ownFirst, s.ownFrom, s.claimFrom = true, fromStart, fromStart
	sleep(reading, s.backoff.NextBackOff())
}
