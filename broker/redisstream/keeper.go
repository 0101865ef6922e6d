package redisstream

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/internal/inflight"
)

// keep looks after what was read, until the room is closed and settled: it
// acknowledges, gives back, keeps fresh.
func (s *subscription) keep(base context.Context) {
	fresh := time.NewTicker(s.of.cfg.MinIdle / 3)
	defer fresh.Stop()
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	var results []inflight.Result[*entry]
	var last time.Time // of an acknowledgement
	for open := true; open; {
		select {
		case _, open = <-s.room.Changed():
			if rest := ackEvery - time.Since(last); open && rest > 0 {
				again.Reset(rest)
				continue
			}
		case <-again.C:
		case <-s.kick:
			s.recount(base)
			continue
		case <-fresh.C:
			if s.lease == nil {
				s.freshen(base)
			}
			continue
		}
		last = time.Now()
		results = s.room.Take(results[:0])
		for _, r := range results {
			if r.Outcome == inflight.Acked {
				s.owed = append(s.owed, r.Token.id)
			} else {
				s.back = append(s.back, r.Token)
			}
		}
		clear(results)
		if s.acknowledge(base) != nil {
			again.Reset(50 * time.Millisecond)
		}
		s.release(base, s.back)
		s.back = s.back[:0]
	}
	s.acknowledgeLast(base)
}

// ackEvery is how long at least from one acknowledgement to the next: what
// handlers finish meanwhile goes into one call.
const ackEvery = 2 * time.Millisecond

// maxCall bounds the entries of one call, so that Redis is not held up.
const maxCall = 1000

// acknowledge takes the handled entries off the group's pending list. One that
// another consumer has claimed meanwhile as well: it has been handled.
func (s *subscription) acknowledge(base context.Context) error {
	for len(s.owed) > 0 {
		n := min(len(s.owed), maxCall)
		err := s.call(base, 0, func(ctx context.Context) error {
			return s.of.cfg.Client.XAck(ctx, s.stream, s.of.cfg.Group, s.owed[:n]...).Err()
		})
		if err != nil {
			return err
		}
		s.drop(s.owed[:n])
		s.owed = s.owed[:copy(s.owed, s.owed[n:])]
	}
	return nil
}

// acknowledgeLast is the last thing we do, and does not wait for long if Redis
// does not answer.
func (s *subscription) acknowledgeLast(base context.Context) {
	for giveUp := time.Now().Add(s.grace()); len(s.owed) > 0; sleep(base, 50*time.Millisecond) {
		if err := s.acknowledge(base); err != nil && time.Now().After(giveUp) {
			s.log.Warn("entries were handled but could not be acknowledged; they are delivered again",
				"entry", s.owed[0], "count", len(s.owed), "error", err)
			return
		}
	}
}

// keepScript makes pending entries look as if their consumer had just given a
// sign of life, those that are still its own; XCLAIM with JUSTID leaves their
// delivery counts alone. Without the look at the owner a consumer that had been
// stopped for a while would take back what another one is handling. It answers
// the ids that are another consumer's; what is not pending at all is passed over.
//
//	KEYS[1] the stream; ARGV group, consumer, entry ids
const keepText = `
local lost = {}
for i = 3, #ARGV do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if #p > 0 then
    if p[1][2] == ARGV[2] then
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', 0, 'JUSTID')
    else
      lost[#lost+1] = ARGV[i]
    end
  end
end
return lost
`

var keepScript = redis.NewScript(keepText)

// freshen says that all we hold is still being worked on, and finds out what
// another consumer has taken. An entry that was trimmed meanwhile, or whose group
// is gone, is handled to the end. When Redis does not answer, the next tick tries
// again.
func (s *subscription) freshen(base context.Context) {
	ids := []any{s.of.cfg.Group, s.consumer}
	s.room.Each(func(e *entry, _ bool) { ids = append(ids, e.id) })
	for own := ids[2:]; len(own) > 0; own = own[min(len(own), maxCall):] {
		args := append(ids[:2:2], own[:min(len(own), maxCall)]...)
		err := s.call(base, 0, func(ctx context.Context) error {
			lost, err := keepScript.Run(ctx, s.of.cfg.Client, []string{s.stream}, args...).StringSlice()
			if err == nil && len(lost) > 0 {
				s.lose(lost)
			}
			return err
		})
		if err != nil {
			return
		}
	}
}

// lose takes entries out of the room that another consumer has claimed.
func (s *subscription) lose(ids []string) {
	gone := make(map[string]bool, len(ids))
	for _, id := range ids {
		gone[id] = true
	}
	s.room.Lose(func(e *entry) bool { return gone[e.id] }, ErrLost)
	s.drop(ids)
	s.log.Warn("another consumer has claimed entries that are in flight here, because they could not be kept fresh",
		"entry", ids[0], "count", len(ids))
}

// setScript sets the idle time of a pending entry and its delivery count, if it is still ours.
//
//	KEYS[1] the stream; ARGV group, consumer, entry id, idle ms, delivery count
var setScript = redis.NewScript(`
local p = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if #p == 0 or p[1][2] ~= ARGV[2] then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[4], 'RETRYCOUNT', ARGV[5], 'JUSTID')
return 1
`)

// set calls setScript for several entries, in one round trip. If Redis does not
// answer, nothing is changed.
func (s *subscription) set(base context.Context, entries []*entry, idle time.Duration, count func(*entry) int64) {
	for len(entries) > 0 {
		n := min(len(entries), maxCall)
		err := s.call(base, 0, func(ctx context.Context) error {
			if err := setScript.Load(ctx, s.of.cfg.Client).Err(); err != nil {
				return err
			}
			_, err := s.of.cfg.Client.Pipelined(ctx, func(q redis.Pipeliner) error {
				for _, e := range entries[:n] {
					setScript.EvalSha(ctx, q, []string{s.stream}, s.of.cfg.Group, s.consumer, e.id, idle.Milliseconds(), count(e))
				}
				return nil
			})
			return err
		})
		if err != nil {
			return
		}
		entries = entries[n:]
	}
}

// nacked has the count of deliveries told to Redis, before the entry is handed
// over again. It is called with the room's lock held.
func (s *subscription) nacked(e *entry, attempt int) inflight.Verdict {
	s.mu.Lock()
	s.recounts = append(s.recounts, e)
	s.mu.Unlock()
	e.nacks.Store(int64(attempt))
	select {
	case s.kick <- struct{}{}:
	default:
	}
	return inflight.Retry
}

func (s *subscription) recount(base context.Context) {
	s.mu.Lock()
	entries := s.recounts
	s.recounts = nil
	s.mu.Unlock()
	s.set(base, entries, 0, func(e *entry) int64 { return e.deliveries + e.nacks.Load() })
}

// release gives entries back that have not been handled: they are made to look
// silent for MinIdle, so that any consumer of the group takes them at its next
// look. If Redis does not answer, that happens by itself, after MinIdle.
func (s *subscription) release(base context.Context, entries []*entry) {
	if len(entries) == 0 {
		return
	}
	s.set(base, entries, s.of.cfg.MinIdle, func(e *entry) int64 { return e.deliveries + max(e.attempts.Load()-1, 0) })
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.id
	}
	s.drop(ids)
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
