package kafka

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/outbox"
)

// A batch is the work of one publish call. All that is left to do of it goes
// out in one round: mostly there is one only. A record whose batch Kafka refused
// for the sake of some record in it is a suspect: the next round sends the first
// half of its group, until one fails alone.
type batch struct {
	src     source
	results []outbox.Result
	todo    []int32 // what the next round sends, in order
	facts   map[string]topicFacts
	blocked map[lane]bool // keys whose messages may not be sent any more in this call

	suspects []*suspects
	failed   []*slot
}

type lane struct{ topic, key string }

// A reason makes the error for a message that was not answered: cause is what
// franz-go says of it, if anything.
type reason func(topic string, sent bool, cause error) error

// suspects are messages of one partition, in order; a failed one is among the
// first. Of these as many as chunk are sent next.
type suspects struct {
	list  []int32
	chunk int
}

type place struct {
	topic     string
	partition int32
}

func (b *batch) begin(src source, results []outbox.Result) {
	b.src, b.results = src, results
	if b.facts == nil {
		b.facts = make(map[string]topicFacts)
	}
	b.todo = b.todo[:0]
	for i := range src.len() {
		b.todo = append(b.todo, int32(i))
	}
}

// unknown lists the topics whose facts have to be asked for; the others' it takes.
func (b *batch) unknown(t *topics, now time.Time) (names []string) {
	last := ""
	for _, i := range b.todo {
		name := b.src.topic(int(i))
		if name == last {
			continue
		}
		last = name
		if _, seen := b.facts[name]; seen {
			continue
		}
		if fault := topicFault(name); fault != "" {
			b.facts[name] = topicFacts{fault: fault}
			continue
		}
		f, ok := t.get(name, now)
		b.facts[name] = f
		if !ok {
			names = append(names, name)
		}
	}
	return names
}

// fail leaves message i out of the call, and with it all that comes later of its key.
func (b *batch) fail(i int, r outbox.Result) {
	l := lane{b.src.topic(i), b.src.key(i)}
	if l.key == "" {
		b.results[i] = r // nothing has to wait for it
		return
	}
	if b.blocked[l] {
		b.results[i] = outbox.Result{Status: outbox.NotAttempted, Err: r.Err}
		return
	}
	if b.blocked == nil {
		b.blocked = make(map[lane]bool)
	}
	b.blocked[l] = true
	b.results[i] = r
}

// load hands the round's records to the courier, which does not send them yet.
// It returns false if the courier is of no use, because it knows another limit of
// a topic.
func (b *batch) load(soft context.Context, c *courier, limit int) bool {
	for topic, f := range b.facts {
		if f.maxBytes > 0 && !c.limits.set(topic, min(f.maxBytes, limit)) {
			return false
		}
	}
	now := time.Now()
	c.begin(len(b.todo))
	c.w.begin(b.src, b.todo)
	n := 0
	for _, i32 := range b.todo {
		i := int(i32)
		s := c.slots[n]
		if !b.fill(s, &c.w, i, now, limit) {
			s.record = kgo.Record{}
			c.skip()
			continue
		}
		n++
		c.client.Produce(soft, &s.record, s.promise)
	}
	b.todo = b.todo[:n]
	return true
}

// fill makes the record of message i, unless it is certain to fail.
func (b *batch) fill(s *slot, w *writer, i int, now time.Time, limit int) bool {
	topic := b.src.topic(i)
	if b.blocked != nil && b.blocked[lane{topic, b.src.key(i)}] {
		return false
	}
	f := b.facts[topic]
	reason := f.fault
	if reason == "" {
		reason = b.src.invalid(i)
	}
	if reason != "" {
		b.fail(i, outbox.Result{Status: outbox.Permanent, Err: &InvalidMessageError{Topic: topic, MessageID: b.src.id(i), Reason: reason}})
		return false
	}
	if f.err != nil {
		b.fail(i, b.refused(i, f.err))
		return false
	}
	s.record.Topic, s.record.Partition = topic, -1
	b.src.write(w, i, &s.record)
	if n, most := batchBytes(&s.record), min(f.maxBytes, limit)-overhead; n > most {
		b.fail(i, b.tooLarge(i, n, most))
		return false
	}
	s.record.Timestamp = recordTime(b.src.happened(i), now, f.retention)
	s.index, s.err = int32(i), nil
	s.suspect = b.suspectOf(int32(i))
	s.done.Store(false)
	return true
}

func (b *batch) suspectOf(i int32) int32 {
	for n, s := range b.suspects {
		for _, j := range s.list[:s.chunk] {
			if i == j {
				return int32(n)
			}
		}
	}
	return -1
}

func (b *batch) refused(i int, err error) outbox.Result {
	v := judge(err)
	return outbox.Result{Status: v.status, Err: &RefusedError{
		Topic: b.src.topic(i), MessageID: b.src.id(i), Err: err, kind: v.kind, wayOut: v.wayOut}}
}

func (b *batch) tooLarge(i, bytes, most int) outbox.Result {
	return outbox.Result{Status: outbox.Permanent, Err: &TooLargeError{
		Topic: b.src.topic(i), MessageID: b.src.id(i), Bytes: bytes, MaxBytes: most}}
}

// settle writes down what has become of a round whose records are all
// answered, and says what the next one sends. clean: nothing has failed.
func (b *batch) settle(c *courier, why reason) (clean bool) {
	b.failed = b.failed[:0]
	for n := range b.todo {
		if s := c.slots[n]; s.err == nil {
			b.results[s.index] = outbox.Result{Status: outbox.Done}
		} else {
			b.failed = append(b.failed, s)
		}
	}
	b.todo = b.todo[:0]
	if len(b.failed) == 0 && len(b.suspects) == 0 {
		return true
	}
	groups := make(map[place]*suspects)
	again := make(map[int32]*suspects)
	for _, s := range b.failed {
		i := int(s.index)
		switch v := judge(s.err); {
		case givenUp(s.err) || !answered(s.err):
			b.fail(i, b.unsent(i, why, s.err))
		case v.oneOfBatch && s.suspect >= 0:
			add(again, s.suspect, s.index)
		case v.oneOfBatch:
			add(groups, place{s.record.Topic, s.record.Partition}, s.index)
		default:
			b.fail(i, b.refused(i, s.err))
		}
	}
	b.narrow(c, groups, again)
	return len(b.failed) == 0
}

func add[K comparable](groups map[K]*suspects, of K, i int32) {
	g := groups[of]
	if g == nil {
		g = new(suspects)
		groups[of] = g
	}
	g.list = append(g.list, i)
}

func (b *batch) unsent(i int, why reason, cause error) outbox.Result {
	err := why(b.src.topic(i), false, cause)
	if !errors.Is(err, outbox.ErrUnavailable) { // cancelled
		return outbox.Result{Status: outbox.NotAttempted, Err: err}
	}
	return outbox.Result{Status: outbox.Passing, Err: err}
}

// narrow says what of the suspects is sent next: the first half of those that
// have failed together, or, if all went well, of those that are left.
func (b *batch) narrow(c *courier, groups map[place]*suspects, again map[int32]*suspects) {
	var next []*suspects
	for n, s := range b.suspects {
		failed := again[int32(n)]
		switch {
		case failed == nil && b.allDone(s.list[:s.chunk]):
			s.list = s.list[s.chunk:]
			s.chunk = (len(s.list) + 1) / 2
		case failed == nil: // for another reason
			b.behind(s.list[s.chunk:])
			s.list = nil
		case len(failed.list) == 1:
			b.guilty(c, failed.list[0])
			b.behind(s.list[s.chunk:])
			s.list = nil
		default:
			s.list = append(failed.list, s.list[s.chunk:]...)
			s.chunk = len(failed.list) / 2
		}
		if len(s.list) > 0 {
			next = append(next, s)
		}
	}
	for _, g := range groups {
		if len(g.list) == 1 {
			b.guilty(c, g.list[0])
			continue
		}
		g.chunk = len(g.list) / 2
		next = append(next, g)
	}
	b.suspects = next
	for _, s := range next {
		b.todo = append(b.todo, s.list[:s.chunk]...)
	}
}

func (b *batch) allDone(list []int32) bool {
	for _, i := range list {
		if b.results[i].Status != outbox.Done {
			return false
		}
	}
	return true
}

// guilty: it has failed alone.
func (b *batch) guilty(c *courier, i int32) {
	for _, s := range b.failed {
		if s.index != i {
			continue
		}
		if errors.Is(s.err, kerr.MessageTooLarge) {
			b.fail(int(i), b.tooLarge(int(i), batchBytes(&s.record), b.facts[s.record.Topic].maxBytes))
			return
		}
		b.fail(int(i), b.refused(int(i), s.err))
	}
}

// behind leaves the messages for another call: they stood behind a failed one
// in its partition.
func (b *batch) behind(list []int32) {
	for _, i := range list {
		b.results[i] = outbox.Result{Status: outbox.NotAttempted}
	}
}

// sort takes out what was refused before anything was sent; the rest goes in
// the next round, with another courier.
func (b *batch) sort(c *courier, why reason) {
	rest := b.todo[:0]
	for n := range b.todo {
		s := c.slots[n]
		i := int(s.index)
		switch {
		case !s.done.Load() || s.err == nil:
			rest = append(rest, s.index)
		case givenUp(s.err) || !answered(s.err):
			b.fail(i, b.unsent(i, why, s.err))
		default:
			b.facts[s.record.Topic] = topicFacts{err: s.err} // for the others of that topic
			b.fail(i, b.refused(i, s.err))
		}
	}
	b.todo = rest
}

// abandon writes down what has become of a round whose time is over: what is
// not answered may have been sent.
func (b *batch) abandon(c *courier, dismiss func(), why reason) {
	type open struct {
		s   *slot
		err error
	}
	var rest []open
	for n := range b.todo {
		s := c.slots[n]
		switch {
		case !s.done.Load():
			rest = append(rest, open{s, nil})
		case s.err == nil:
			b.results[s.index] = outbox.Result{Status: outbox.Done}
		default:
			rest = append(rest, open{s, s.err})
		}
	}
	dismiss()
	sent := c.line.wrote.Load() // now it cannot happen any more
	for _, o := range rest {
		i := int(o.s.index)
		switch {
		case o.err == nil && sent:
			b.results[i] = outbox.Result{Status: outbox.Unknown, Err: why(b.src.topic(i), true, nil)}
		case o.err == nil || givenUp(o.err) || !answered(o.err):
			b.fail(i, b.unsent(i, why, o.err))
		case judge(o.err).oneOfBatch:
			b.results[i] = outbox.Result{Status: outbox.NotAttempted, Err: o.err}
		default:
			b.fail(i, b.refused(i, o.err))
		}
	}
	b.todo = b.todo[:0]
	for _, s := range b.suspects {
		b.behind(s.list[s.chunk:])
	}
	b.suspects = nil
}

// leaveOut says why what is left was not sent.
func (b *batch) leaveOut(why reason, cause error) {
	for _, i := range b.todo {
		b.fail(int(i), b.unsent(int(i), why, cause))
	}
	for _, s := range b.suspects {
		b.behind(s.list[s.chunk:])
	}
	b.todo = b.todo[:0]
}

// reset forgets the call, and keeps the room.
func (b *batch) reset() {
	clear(b.facts)
	clear(b.blocked)
	clear(b.failed)
	*b = batch{todo: b.todo[:0], facts: b.facts, blocked: b.blocked, failed: b.failed[:0]}
}

// allAgain: a topic's limit has been lowered. Its suspects are sent again, all
// of them, in batches that fit; those over the limit are found by counting.
func (b *batch) allAgain(topic string) {
	b.todo = b.todo[:0]
	for _, s := range b.suspects {
		if len(s.list) > 0 && b.src.topic(int(s.list[0])) == topic {
			s.chunk = len(s.list)
		}
		b.todo = append(b.todo, s.list[:s.chunk]...)
	}
}
