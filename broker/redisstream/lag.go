package redisstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Lag says how far a group is behind on one stream.
type Lag struct {
	Stream string
	Group  string

	// Entries is how many the group has not acknowledged: Waiting + Pending.
	Entries int64
	// Waiting is how many no consumer has got yet. Redis does not know it exactly
	// once entries in the middle of the stream were deleted (XDEL): then they are
	// counted, up to 10,000.
	Waiting int64
	// Pending is how many a consumer has got and not acknowledged: in flight, read
	// ahead, or held by a dead one.
	Pending int64
	// Oldest is the age of the oldest of them, by Redis' clock; 0 if there are none.
	Oldest time.Duration
}

// lagScript answers in one step: pending, waiting, the id of the oldest entry
// that is not acknowledged ("" if there is none), and the server's time in ms. It
// answers -1 if there is no such group.
//
//	KEYS[1] the stream; ARGV group
var lagScript = redis.NewScript(`
local last, lag
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local f = {}
  for i = 1, #group, 2 do f[group[i]] = group[i+1] end
  if f['name'] == ARGV[1] then last, lag = f['last-delivered-id'], f['lag'] end
end
if not last then return -1 end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
if not lag then lag = #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 10000) end
local oldest = pending[2] or ''
if oldest == '' and lag > 0 then
  local first = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)
  if #first > 0 then oldest = first[1][1] end
end
local now = redis.call('TIME')
return {pending[1], lag, oldest, now[1] * 1000 + math.floor(now[2] / 1000)}
`)

// Lag asks Redis how far the group is behind on every stream that this
// Subscriber is subscribed to at the moment, by name. A stream or group that
// does not exist (it is being created again) is left out. Each stream has 5 s to
// be answered; the error names those that did not, the others are in the result.
// An ACL user needs EVAL, EVALSHA, TIME, XINFO, XPENDING and XRANGE.
func (s *Subscriber) Lag(ctx context.Context) ([]Lag, error) {
	s.mu.Lock()
	var streams []string
	for sub := range s.subs {
		streams = append(streams, sub.streams()...)
	}
	s.mu.Unlock()
	slices.Sort(streams)

	var lags []Lag
	var faults []error
	for _, stream := range slices.Compact(streams) {
		l, known, err := lagOf(ctx, s.cfg.Client, stream, s.cfg.Group)
		switch {
		case err != nil:
			faults = append(faults, err)
		case known:
			lags = append(lags, l)
		}
	}
	return lags, errors.Join(faults...)
}

func lagOf(ctx context.Context, client redis.UniversalClient, stream, group string) (Lag, bool, error) {
	answer, err := within(ctx, answerTimeout, func(ctx context.Context) (any, error) {
		return lagScript.Run(ctx, client, []string{stream}, group).Result()
	})
	if err != nil {
		if strings.Contains(err.Error(), "no such key") {
			return Lag{}, false, nil
		}
		return Lag{}, false, commandError(fmt.Sprintf("ask for the lag of group %q on stream %q", group, stream), err,
			"the key of that name is no stream: correct the name",
			"allow this ACL user the stream and the commands EVAL, EVALSHA, TIME, XINFO, XPENDING and XRANGE")
	}
	parts, _ := answer.([]any)
	if len(parts) != 4 {
		return Lag{}, false, nil
	}
	l := Lag{Stream: stream, Group: group}
	l.Pending, _ = parts[0].(int64)
	l.Waiting, _ = parts[1].(int64)
	l.Entries = l.Pending + l.Waiting
	now, _ := parts[3].(int64)
	if id, _ := parts[2].(string); id != "" {
		ms, _ := parseID(id)
		l.Oldest = max(0, time.Duration(now-int64(ms))*time.Millisecond)
	}
	return l, true, nil
}
