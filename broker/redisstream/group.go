package redisstream

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// isGroupLost: the stream or the group has been removed (DEL, FLUSHALL, XGROUP
// DESTROY, a server that came back empty). UNBLOCKED is what Redis answers to a
// read that was waiting at that moment.
func isGroupLost(err error) bool {
	return strings.HasPrefix(err.Error(), "NOGROUP") || strings.HasPrefix(err.Error(), "UNBLOCKED")
}

// heal creates the group anew. What it had handled is forgotten with it, so it
// begins with the first entry there is: some may come again, none is missed. A
// FromNow group on a stream that is still the same begins where it stood when
// we subscribed, since its owner never wanted what lies before.
func (s *subscription) heal(reading context.Context) error {
	position := fromStart
	if s.floor != "" {
		newest, err := s.newest(reading)
		if err != nil {
			return err
		}
		if !idLess(newest, s.floor) {
			position = s.floor
		}
	}
	if err := s.createGroup(reading, position); err != nil {
		return err
	}
	s.claimFrom = fromStart
	s.log.Warn("the stream or its consumer group was removed; the group has been created anew and may hand over entries again",
		"position", position)
	return nil
}

// newest is the id that the stream has given out last; it survives deletions.
func (s *subscription) newest(ctx context.Context) (string, error) {
	var id string
	err := s.call(ctx, 0, func(ctx context.Context) error {
		info, err := s.of.cfg.Client.XInfoStream(ctx, s.stream).Result()
		if err != nil {
			if strings.Contains(err.Error(), "no such key") {
				id, err = "0-0", nil
			}
			return err
		}
		id = info.LastGeneratedID
		return nil
	})
	return id, err
}

// findFloor notes where the group stands: before its oldest pending entry, or
// after the last one it has delivered.
func (s *subscription) findFloor(ctx context.Context) error {
	return s.call(ctx, 0, func(ctx context.Context) error {
		groups, err := s.of.cfg.Client.XInfoGroups(ctx, s.stream).Result()
		if err != nil {
			return err
		}
		for _, g := range groups {
			if g.Name == s.of.cfg.Group {
				s.floor = g.LastDeliveredID
			}
		}
		pending, err := s.of.cfg.Client.XPending(ctx, s.stream, s.of.cfg.Group).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		if pending != nil && pending.Count > 0 && idLess(pending.Lower, s.floor) {
			s.floor = before(pending.Lower)
		}
		return nil
	})
}

// parseID takes an entry id "milliseconds-sequence" apart.
func parseID(id string) (ms, seq uint64) {
	m, q, _ := strings.Cut(id, "-")
	ms, _ = strconv.ParseUint(m, 10, 64)
	seq, _ = strconv.ParseUint(q, 10, 64)
	return ms, seq
}

func idLess(a, b string) bool {
	am, as := parseID(a)
	bm, bs := parseID(b)
	return am < bm || am == bm && as < bs
}

// before is the highest id below id.
func before(id string) string {
	ms, seq := parseID(id)
	switch {
	case seq > 0:
		seq--
	case ms > 0:
		ms, seq = ms-1, ^uint64(0)
	}
	return strconv.FormatUint(ms, 10) + "-" + strconv.FormatUint(seq, 10)
}
