package redisstream

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A lease makes one member of a group the only reader of a shard: a key beside
// the stream that holds his token and runs out. Whoever reads, reads by a script
// that looks at it first, so a member that was frozen and has lost his lease gets
// nothing more.
type lease struct {
	key   string // in the stream's slot
	token string
	ttl   time.Duration
	doubt chan struct{} // cap 1: somebody has seen that it is not ours any more
}

// shardConsumer is the name under which whoever has the lease reads: so what his
// predecessor held is his, first and in order.
const shardConsumer = "shard-owner"

// newLease is for one tenure: token must be one that nobody has had.
func newLease(stream, group, token string, ttl time.Duration) *lease {
	return &lease{key: stream + ":lease:" + group, token: token, ttl: ttl, doubt: make(chan struct{}, 1)}
}

// acquireScript is SET NX PX, also when go-redis repeats it after a lost answer.
//
//	KEYS[1] the lease; ARGV token, ms
var acquireScript = redis.NewScript(`
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) == ARGV[1] then return 1 end
return 0
`)

// acquire gets the lease if nobody has it.
func (l *lease) acquire(ctx context.Context, client redis.UniversalClient) (bool, error) {
	n, err := acquireScript.Run(ctx, client, []string{l.key}, l.token, l.ttl.Milliseconds()).Int()
	return n == 1, err
}

// prolongScript prolongs a lease that is still ours.
//
//	KEYS[1] the lease; ARGV token, ms
var prolongScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
`)

func (l *lease) renew(ctx context.Context, client redis.UniversalClient) (bool, error) {
	n, err := prolongScript.Run(ctx, client, []string{l.key}, l.token, l.ttl.Milliseconds()).Int()
	return n == 1, err
}

// endScript ends a lease that is still ours.
//
//	KEYS[1] the lease; ARGV token
var endScript = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
`)

func (l *lease) release(base context.Context, client redis.UniversalClient) {
	_, _ = within(base, answerTimeout, func(ctx context.Context) (any, error) { // else it runs out
		return nil, endScript.Run(ctx, client, []string{l.key}, l.token).Err()
	})
}

// leasedReadScript is XREADGROUP for whoever has the lease.
//
//	KEYS[1] the stream, KEYS[2] the lease; ARGV token, group, consumer, count, from
const leasedRead = `
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('LEASELOST another member has the shard') end
return redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4], 'STREAMS', KEYS[1], ARGV[5])
`

var leasedReadScript = redis.NewScript(leasedRead)

// runScriptOnce runs a script, and leaves it to the caller what a lost answer
// means: go-redis would run it again, and what the first run has read would be
// with nobody.
func runScriptOnce(ctx context.Context, client redis.UniversalClient, script *redis.Script, keys []string, args ...any) (any, error) {
	var cmd *redis.Cmd
	err := runOnce(ctx, client, func(q redis.Pipeliner) { cmd = script.EvalSha(ctx, q, keys, args...) })
	if err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
		err = runOnce(ctx, client, func(q redis.Pipeliner) { cmd = script.Eval(ctx, q, keys, args...) })
	}
	return cmd.Val(), err
}

func isLeaseLost(err error) bool { return strings.HasPrefix(err.Error(), "LEASELOST") }

// readLeased is readGroup under a lease. Since a script cannot wait, it waits, for
// as long as block, with an XREAD, which takes nothing.
func (s *subscription) readLeased(ctx context.Context, from string, n int, block time.Duration) ([]redis.XMessage, error) {
	if s.newestSeen == "" {
		newest, err := s.newest(ctx)
		if err != nil {
			return nil, err
		}
		s.newestSeen = newest
	}
	found, err := s.readLeasedNow(ctx, from, n)
	if err != nil || len(found) > 0 || block < 0 {
		return found, err
	}
	err = s.call(ctx, block, func(ctx context.Context) error {
		streams, err := s.of.cfg.Client.XRead(ctx, &redis.XReadArgs{Streams: []string{s.stream, s.newestSeen}, Count: 1, Block: block}).Result()
		if len(streams) > 0 && len(streams[0].Messages) > 0 {
			s.newestSeen = streams[0].Messages[0].ID
		}
		if errors.Is(err, redis.Nil) {
			return nil
		}
		return err
	})
	return nil, err
}

func (s *subscription) readLeasedNow(ctx context.Context, from string, n int) (found []redis.XMessage, err error) {
	err = s.call(ctx, 0, func(ctx context.Context) error {
		answer, err := runScriptOnce(ctx, s.of.cfg.Client, leasedReadScript, []string{s.stream, s.lease.key},
			s.lease.token, s.of.cfg.Group, s.consumer, n, from)
		if err == nil {
			found = entriesOf(answer)
		}
		return err
	})
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	if from == fromNew && len(found) > 0 {
		s.newestSeen = found[len(found)-1].ID
	}
	return found, err
}

// entriesOf reads XREADGROUP's answer as a script gives it: [[stream, [[id, [name, value, ...]], ...]]].
// An entry that was deleted has no fields.
func entriesOf(answer any) (found []redis.XMessage) {
	list := func(v any, i int) []any {
		all, _ := v.([]any)
		if i >= len(all) {
			return nil
		}
		inner, _ := all[i].([]any)
		return inner
	}
	stream := list(answer, 0)
	for i := range list(stream, 1) {
		e := list(list(stream, 1), i)
		if len(e) == 0 {
			continue
		}
		m := redis.XMessage{}
		m.ID, _ = e[0].(string)
		if fields := list(e, 1); fields != nil {
			m.Values = make(map[string]any, len(fields)/2)
			for f := 0; f+1 < len(fields); f += 2 {
				name, _ := fields[f].(string)
				m.Values[name] = fields[f+1]
			}
		}
		found = append(found, m)
	}
	return found
}
