package redisstream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// ErrNoGroups: Trim was asked to trim a stream that no consumer group reads.
var ErrNoGroups = errors.New("no consumer group reads it, so nothing says what is still needed")

// TrimOption changes one call of Trim.
type TrimOption func(*trimming)

type trimming struct{ approximate bool }

// Approximately leaves what is not worth the effort: the entries, fewer than
// stream-node-max-entries (100 by default), that share a node of the stream with
// one that is still needed.
func Approximately() TrimOption { return func(t *trimming) { t.approximate = true } }

// Trim removes from a stream what all its groups have consumed: every entry below
// the lowest id that any of them still needs, which is its oldest pending entry,
// or else the last one that it was given. Look and removal are one step for
// Redis, so it may run beside any publishers and consumers, and at any time: no
// entry goes that a group has not got, or has got and not acknowledged. The
// last entry that was consumed stays.
//
// It returns how many entries are gone, also beside an error, but for those of a
// step whose answer was lost. It goes in steps of about 10,000 entries, so that
// Redis is not held up, until ctx ends or nothing is left to remove; each step has
// 5 s to be answered.
//
// A stream without groups, or that does not exist, is refused with ErrNoGroups: a
// group that is yet to be created is nobody that Trim knows of. A group that
// nobody reads any more holds back everything: remove it (XGROUP DESTROY). Other
// errors are *[CommandError].
func Trim(ctx context.Context, client redis.UniversalClient, stream string, opts ...TrimOption) (removed int64, err error) {
	var t trimming
	for _, opt := range opts {
		opt(&t)
	}
	if faults := clientFaults("Trim", client); len(faults) > 0 {
		return 0, fmt.Errorf("trim stream %q: %w: %w", stream, ErrInvalidConfig, errors.Join(faults...))
	}
	for {
		n, err := trimStep(ctx, client, stream, "~")
		removed += n
		if err != nil {
			return removed, err
		}
		if n == 0 {
			break
		}
	}
	if t.approximate {
		return removed, nil
	}
	n, err := trimStep(ctx, client, stream, "=") // the rest of one node
	return removed + n, err
}

// trimScript removes what is below the lowest id that any group still needs. A
// group's place is its last-delivered-id, and its oldest pending entry; the lower
// of the two counts, since XGROUP SETID and XCLAIM FORCE may put either first.
// Ids are compared as text: a number of Lua has 53 bits and theirs have 64. "~"
// comes with a limit of 100 nodes. It answers -1 if there are no groups.
//
//	KEYS[1] the stream; ARGV "~" or "="
const trimScript = `
local function below(a, b)
  local ams, aseq = string.match(a, '(%d+)-(%d+)')
  local bms, bseq = string.match(b, '(%d+)-(%d+)')
  if ams == bms then ams, bms = aseq, bseq end
  if #ams ~= #bms then return #ams < #bms end
  return ams < bms
end
local needed
local function need(id)
  if not needed or below(id, needed) then needed = id end
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local name
  for i = 1, #group, 2 do
    if group[i] == 'name' then name = group[i+1] end
    if group[i] == 'last-delivered-id' then need(group[i+1]) end
  end
  local pending = redis.call('XPENDING', KEYS[1], name)
  if pending[1] > 0 then need(pending[2]) end
end
if not needed then return -1 end
return redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1], needed)
`

// trimStep is sent once: the answer to a repetition would not count what the
// first one has removed.
func trimStep(ctx context.Context, client redis.UniversalClient, stream, how string) (int64, error) {
	n, err := within(ctx, answerTimeout, func(ctx context.Context) (int64, error) {
		var cmd *redis.Cmd
		_ = runOnce(ctx, client, func(q redis.Pipeliner) { // the error is the command's
			cmd = q.Eval(ctx, trimScript, []string{stream}, how)
		})
		return cmd.Int64()
	})
	switch {
	case err != nil && strings.Contains(err.Error(), "no such key"):
		return 0, fmt.Errorf("trim stream %q: there is no stream of that name: %w; correct the name", stream, ErrNoGroups)
	case err != nil:
		return 0, commandError(fmt.Sprintf("trim stream %q", stream), err, "the key of that name is no stream: correct the name",
			"allow this ACL user the stream and the commands EVAL, XINFO, XPENDING and XTRIM")
	case n < 0:
		return 0, fmt.Errorf("trim stream %q: %w; start its consumers first, or trim it by hand (XTRIM) if nobody is to have its entries", stream, ErrNoGroups)
	}
	return n, nil
}
