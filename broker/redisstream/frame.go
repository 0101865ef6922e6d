package redisstream

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// addScript appends messages to one stream, in order, and stops at the first
// that Redis refuses. It answers with the number added and, if it stopped, the
// refusal: so what became of each message is known exactly.
//
//	KEYS[1] the stream; ARGV uuid, metadata, payload of the first message, of the second, ...
//
// ARGV is indexed, never unpacked: Lua's limit on unpack does not apply. A
// read-only server is reported as a plain error, because go-redis then drops
// the connection and looks for the new master. There is no MAXLEN: it would
// trim what no group has read yet.
const addScript = `
local add, stream, n = redis.pcall, KEYS[1], 0
for i = 1, #ARGV, 3 do
  local id = add('XADD', stream, '*', '_watermill_message_uuid', ARGV[i], 'metadata', ARGV[i+1], 'payload', ARGV[i+2])
  if type(id) == 'table' and id.err then
    if n == 0 and string.find(id.err, '^%-?READONLY') then return id end
    return {n, id.err}
  end
  n = n + 1
end
return {n}
`

// Arguments that every call shares, boxed once.
var (
	argEvalSHA any = "evalsha"
	argEval    any = "eval"
	argScript  any = addScript
	argOneKey  any = "1"
	argHash    any = func() string {
		sum := sha1.Sum([]byte(addScript)) // the name under which Redis caches a script
		return hex.EncodeToString(sum[:])
	}()
)

// A frame is one script call: a chunk of one topic's messages. The call runs in
// a goroutine of its own, which go-redis may hold beyond the deadline; the
// frame's state settles, once, whether it has been sent.
type frame struct {
	lane  int
	first int // the chunk: messages first, next[first], ... count of them
	count int

	buf   *[]byte // the batch's shared buffer, final before the call
	args  []any
	cmd   *redis.Cmd
	wait  *redis.Cmd // of the round trip: how many replicas have it; nil if nobody asks
	state atomic.Int32
}

const (
	stateWaiting int32 = iota // for a connection
	stateSent                 // go-redis has begun to write it to a connection
	stateGivenUp              // the deadline has passed: it must not be written any more
)

// giveUp is called when the deadline has passed, and says whether the frame may
// have been sent by then. If not, it never will be.
func (f *frame) giveUp() (sent bool) { return f.state.Swap(stateGivenUp) == stateSent }

func (f *frame) sent() bool { return f.state.Load() == stateSent }

// A piece is one argument of a frame. go-redis asks for it at the moment when
// it writes it to the connection.
type piece struct {
	of       *frame
	from, to int // in the batch's buffer
}

var errGivenUp = errors.New("the deadline passed before it was sent")

func (p *piece) MarshalBinary() ([]byte, error) {
	if s := &p.of.state; !s.CompareAndSwap(stateWaiting, stateSent) && s.Load() != stateSent {
		return nil, errGivenUp // go-redis drops the connection, on which half a command may stand
	}
	return (*p.of.buf)[p.from:p.to], nil
}

// callAll sends the frames in one round trip, those whose script the server
// does not know yet again with its text, and returns when all have an answer or
// an error.
func callAll(ctx context.Context, client redis.UniversalClient, frames []*frame, r replicas) {
	send(ctx, client, frames, r)
	var unknown []*frame
	for _, f := range frames {
		if err := f.cmd.Err(); err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
			f.args[0], f.args[1] = argEval, argScript
			f.cmd = redis.NewCmd(ctx, f.args...)
			unknown = append(unknown, f)
		}
	}
	if len(unknown) > 0 {
		send(ctx, client, unknown, r)
	}
}

func send(ctx context.Context, client redis.UniversalClient, frames []*frame, r replicas) {
	wait := r.command(ctx)
	if len(frames) == 1 && wait == nil {
		_ = client.Process(ctx, once{frames[0].cmd}) // the error is the command's
		return
	}
	pipe := client.Pipeline()
	for _, f := range frames {
		f.wait = wait
		_ = pipe.Process(ctx, once{f.cmd})
	}
	if wait != nil {
		_ = pipe.Process(ctx, once{wait})
	}
	_, _ = pipe.Exec(ctx) // the errors are the commands'
}
