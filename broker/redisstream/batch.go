package redisstream

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/postbus/postbus/outbox"
)

// A batch is the work of one publish call: its messages sorted into a lane per
// topic, sent in rounds. A round is one chunk of every lane, all in one round
// trip; a lane's next chunk goes out only when the one before is known to be
// in the stream whole. That is what BatchContract.StopsKeyAtFirstFailure says.
type batch struct {
	src     source
	results []outbox.Result
	limits  limits

	replicas int // that must have what was added

	lanes   []lane
	byTopic map[string]int
	next    []int32 // next[i]: the message of i's lane that follows i; -1 at the end

	// of the present round
	frames []*frame
	pieces []piece
	args   []any
	buf    []byte
}

type limits struct {
	messageBytes  int // one message
	chunkMessages int // one script call: the server does nothing else meanwhile
	chunkBytes    int
}

type lane struct {
	topic      string
	head, tail int32 // head: the first message not sent yet, -1 when there is none
}

// sortOut gives every message its lane, in order. What is certain to fail is
// left out and so is, of its key, everything behind it.
func (b *batch) sortOut() {
	type keyOfTopic struct{ topic, key string }
	var blocked map[keyOfTopic]bool
	if b.byTopic == nil {
		b.byTopic = make(map[string]int)
	}
	for i := range b.src.len() {
		b.next = append(b.next, -1)
		if err := b.unsendable(i); err != nil {
			b.results[i] = outbox.Result{Status: outbox.Permanent, Err: err}
			if blocked == nil {
				blocked = make(map[keyOfTopic]bool)
			}
			blocked[keyOfTopic{b.src.topic(i), b.src.key(i)}] = true
			continue
		}
		if blocked != nil && blocked[keyOfTopic{b.src.topic(i), b.src.key(i)}] {
			continue
		}
		b.enqueue(b.src.topic(i), int32(i))
	}
}

func (b *batch) unsendable(i int) error {
	if reason := b.src.invalid(i); reason != "" {
		return &InvalidMessageError{Stream: b.src.topic(i), MessageID: b.src.id(i), Reason: reason}
	}
	if n := b.src.size(i); n > b.limits.messageBytes {
		return &TooLargeError{Stream: b.src.topic(i), MessageID: b.src.id(i), Bytes: n, MaxBytes: b.limits.messageBytes}
	}
	return nil
}

func (b *batch) enqueue(topic string, i int32) {
	if n := len(b.lanes); n > 0 && b.lanes[n-1].topic == topic { // the common case: one topic, or runs of one
		b.append(&b.lanes[n-1], i)
		return
	}
	l, ok := b.byTopic[topic]
	if !ok {
		l = len(b.lanes)
		b.byTopic[topic] = l
		b.lanes = append(b.lanes, lane{topic: topic, head: i, tail: i})
		return
	}
	b.append(&b.lanes[l], i)
}

func (b *batch) append(l *lane, i int32) {
	b.next[l.tail] = i
	l.tail = i
}

// nextRound encodes the next chunk of every lane that has one.
func (b *batch) nextRound(ctx context.Context) bool {
	b.frames, b.buf = b.frames[:0], b.buf[:0]
	total := 0
	for l := range b.lanes {
		if b.lanes[l].head >= 0 {
			f := b.cut(l)
			b.frames = append(b.frames, f)
			total += f.count
		}
	}
	// Frames hold on to parts of both, so they must not move while they fill.
	b.pieces = slices.Grow(b.pieces[:0], 3*total)
	b.args = slices.Grow(b.args[:0], headArgs*len(b.frames)+3*total)
	for _, f := range b.frames {
		b.encode(ctx, f)
	}
	return len(b.frames) > 0
}

// cut takes a chunk off a lane.
func (b *batch) cut(l int) *frame {
	lane := &b.lanes[l]
	f := &frame{lane: l, first: int(lane.head), buf: &b.buf}
	bytes := 0
	for lane.head >= 0 && f.count < b.limits.chunkMessages {
		bytes += b.src.size(int(lane.head))
		if f.count > 0 && bytes > b.limits.chunkBytes {
			break
		}
		f.count++
		lane.head = b.next[lane.head]
	}
	return f
}

const headArgs = 4 // of a script call, before the messages

func (b *batch) encode(ctx context.Context, f *frame) {
	start := len(b.args)
	b.args = append(b.args, argEvalSHA, argHash, argOneKey, b.lanes[f.lane].topic)
	i := f.first
	for range f.count {
		from := len(b.buf)
		b.buf = b.src.appendUUID(b.buf, i)
		metadata := len(b.buf)
		b.buf = b.src.appendMetadata(b.buf, i)
		payload := len(b.buf)
		b.buf = append(b.buf, b.src.payload(i)...)
		b.pieces = append(b.pieces, piece{f, from, metadata}, piece{f, metadata, payload}, piece{f, payload, len(b.buf)})
		n := len(b.pieces)
		b.args = append(b.args, &b.pieces[n-3], &b.pieces[n-2], &b.pieces[n-1])
		i = int(b.next[i])
	}
	f.args = b.args[start:len(b.args):len(b.args)]
	f.cmd = redis.NewCmd(ctx, f.args...)
}

// settle writes down what the answer to a frame says of its messages, and
// closes the lane unless all of them are in the stream.
func (b *batch) settle(f *frame) {
	// The value first: when a pipeline breaks, go-redis marks the commands that
	// were answered before with the error as well.
	if added, refusal, ok := answer(f.cmd.Val()); ok && added <= f.count {
		i := b.mark(f.first, added, b.added(f))
		if added < f.count {
			v, _ := judge(refusal)
			b.results[i] = refused(b.lanes[f.lane].topic, b.src.id(i), refusal, v)
			b.close(f)
		} else if b.results[f.first].Status != outbox.Done {
			b.close(f)
		}
		return
	}
	err := f.cmd.Err()
	if err == nil {
		err = fmt.Errorf("an answer of an unknown form (%T)", f.cmd.Val())
	}
	if reply := redis.Error(nil); f.sent() && errors.As(err, &reply) {
		if v, known := judge(reply.Error()); known { // the script has not begun
			b.results[f.first] = refused(b.lanes[f.lane].topic, b.src.id(f.first), reply.Error(), v)
			b.close(f)
			return
		}
	}
	b.unanswered(f, f.sent(), err)
}

// added is the result of messages that are in the stream.
func (b *batch) added(f *frame) outbox.Result {
	if f.wait == nil {
		return outbox.Result{Status: outbox.Done}
	}
	got, err := f.wait.Int()
	if err != nil {
		got = -1
	}
	if got >= b.replicas {
		return outbox.Result{Status: outbox.Done}
	}
	return outbox.Result{Status: outbox.Unknown, Err: &ReplicasError{Stream: b.lanes[f.lane].topic, Asked: b.replicas, Got: got}}
}

// answer takes the script's reply apart.
func answer(val any) (added int, refusal string, ok bool) {
	parts, _ := val.([]any)
	if len(parts) == 0 {
		return 0, "", false
	}
	n, ok := parts[0].(int64)
	if len(parts) > 1 {
		refusal, _ = parts[1].(string)
	}
	return int(n), refusal, ok
}

// unanswered: a frame that was not sent is safe to send again, one that was may
// have been carried out.
func (b *batch) unanswered(f *frame, sent bool, err error) {
	cancelled := errors.Is(err, context.Canceled)
	status := outbox.Passing
	switch {
	case sent:
		status = outbox.Unknown
	case cancelled:
		status = outbox.NotAttempted
	}
	b.mark(f.first, f.count, outbox.Result{Status: status,
		Err: &CallError{Stream: b.lanes[f.lane].topic, Sent: sent, Err: err, cancelled: cancelled}})
	b.close(f)
}

// mark sets the result of n messages of a lane, and returns the one behind them.
func (b *batch) mark(i, n int, r outbox.Result) int {
	for range n {
		b.results[i] = r
		i = int(b.next[i])
	}
	return i
}

// close leaves the rest of the frame's lane NotAttempted.
func (b *batch) close(f *frame) { b.lanes[f.lane].head = -1 }

// leaveOut says why what the lanes still hold was not attempted.
func (b *batch) leaveOut(err error) {
	for _, l := range b.lanes {
		for i := l.head; i >= 0; i = b.next[i] {
			b.results[i] = outbox.Result{Status: outbox.NotAttempted, Err: err}
		}
	}
}

// reset forgets the call, and keeps the room.
func (b *batch) reset() {
	clear(b.byTopic)
	clear(b.frames)
	clear(b.pieces)
	clear(b.args)
	clear(b.lanes)
	*b = batch{lanes: b.lanes[:0], byTopic: b.byTopic, next: b.next[:0],
		frames: b.frames[:0], pieces: b.pieces[:0], args: b.args[:0], buf: b.buf[:0]}
}
