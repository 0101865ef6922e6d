package sqs

import (
	"context"
	"sync"

	"github.com/postbus/postbus/outbox"
)

// A batch is the work of one publish call. Its messages are sorted into lanes: one
// per target and key, and one per message that has no key. A request carries at
// most one message of a lane, and the lane's next one goes out only when that one
// is known to be accepted: SQS and SNS judge each entry of a request by itself,
// so that of two messages of a key in one request the first may be refused and
// the second accepted. That is what BatchContract.StopsKeyAtFirstFailure says.
type batch struct {
	of      *engine
	src     source
	results []outbox.Result

	ends  []*end
	next  []int32 // next[i]: the message of i's lane that follows i; -1 at the end
	inAir map[*request]struct{}
	done  chan *request
}

// An end is one target, with the heads of the lanes that are ready to go there.
type end struct {
	*target
	topic string
	err   error // why there is no target
	ready []int32
}

// sortOut looks the targets up and gives every message its lane, in order.
func (b *batch) sortOut(ctx context.Context) {
	endOf := b.findEnds(ctx)
	type lane struct {
		end *end
		key string
	}
	tails := make(map[lane]int32)
	b.next = make([]int32, b.src.len())
	for i := range b.src.len() {
		b.next[i] = -1
		topic := b.src.topic(i)
		if fault := b.src.fault(i); fault != "" {
			b.results[i] = invalid(topic, b.src.id(i), fault)
			continue
		}
		e := endOf[topic]
		if key := b.src.key(i); key != "" {
			l := lane{e, key}
			tail, some := tails[l]
			tails[l] = int32(i)
			if some {
				b.next[tail] = int32(i)
				continue
			}
		}
		e.ready = append(e.ready, int32(i))
	}
	for _, e := range b.ends {
		if e.target == nil {
			for _, i := range e.ready {
				b.results[i] = b.of.notFound(b.src.topic(int(i)), b.src.id(int(i)), e.err)
			}
			e.ready = nil
		}
	}
}

// findEnds looks up the target of every topic, several at once.
func (b *batch) findEnds(ctx context.Context) map[string]*end {
	of := make(map[string]*end)
	for i := range b.src.len() {
		if topic := b.src.topic(i); of[topic] == nil {
			of[topic] = &end{topic: topic}
			b.ends = append(b.ends, of[topic])
		}
	}
	if len(b.ends) == 1 {
		e := b.ends[0]
		e.target, e.err = b.of.lookUp(ctx, e.topic)
		return of
	}
	var lookUps sync.WaitGroup
	slots := make(chan struct{}, b.of.requests)
	for _, e := range b.ends {
		slots <- struct{}{}
		lookUps.Go(func() {
			e.target, e.err = b.of.lookUp(ctx, e.topic)
			<-slots
		})
	}
	lookUps.Wait()
	return of
}

func invalid(target, id, fault string) outbox.Result {
	return outbox.Result{Status: outbox.Permanent, Err: &InvalidMessageError{Target: target, MessageID: id, Reason: fault}}
}

// run sends until nothing is left to send, or ctx is done.
func (b *batch) run(ctx context.Context) {
	b.inAir, b.done = make(map[*request]struct{}), make(chan *request, b.of.requests)
	for {
		for ctx.Err() == nil && len(b.inAir) < b.of.requests {
			r := b.cut()
			if r == nil {
				break
			}
			b.inAir[r] = struct{}{}
			b.of.start(ctx, r, b.done)
		}
		if len(b.inAir) == 0 {
			break
		}
		select {
		case r := <-b.done:
			b.settle(r)
			continue
		default:
		}
		select {
		case r := <-b.done:
			b.settle(r)
		case <-ctx.Done():
			b.giveUp(ctx.Err())
		}
	}
	if err := ctx.Err(); err != nil {
		for _, e := range b.ends {
			for _, i := range e.ready {
				b.results[i] = outbox.Result{Status: outbox.NotAttempted, Err: err}
			}
		}
	}
}

// cut takes the heads of up to ten lanes off the fullest end. What cannot be sent is
// sorted out here, and its lane ends with it.
func (b *batch) cut() *request {
	var e *end
	for _, other := range b.ends {
		if len(other.ready) > 0 && (e == nil || len(other.ready) > len(e.ready)) {
			e = other
		}
	}
	if e == nil {
		return nil
	}
	r := &request{of: b.of, end: e, entries: make([]entry, 0, min(maxEntries, len(e.ready)))}
	bytes := 0
	for len(e.ready) > 0 && len(r.entries) < maxEntries {
		i := int(e.ready[0])
		entry, fault := encode(b.src, i, e.fifo)
		most := min(e.maxBytes, b.of.maxMessageBytes)
		switch {
		case fault != "":
			b.results[i] = invalid(e.name, entry.id, fault)
		case entry.bytes > most:
			b.results[i] = outbox.Result{Status: outbox.Permanent,
				Err: &TooLargeError{Target: e.name, MessageID: entry.id, Bytes: entry.bytes, MaxBytes: most}}
		case bytes+entry.bytes > e.maxBatch && len(r.entries) > 0:
			return r
		default:
			bytes += entry.bytes
			r.entries = append(r.entries, entry)
		}
		e.ready = e.ready[1:]
	}
	if len(r.entries) == 0 {
		return b.cut()
	}
	return r
}

// settle writes down what the answers say, and makes the next message of those
// lanes ready whose message was accepted.
func (b *batch) settle(r *request) {
	delete(b.inAir, r)
	for k := range r.entries {
		i := r.entries[k].index
		b.results[i] = r.results[k]
		if r.results[k].Status == outbox.Done && b.next[i] >= 0 {
			r.end.ready = append(r.end.ready, b.next[i])
		}
	}
}

// giveUp: the call's time is over. What has a connection may arrive, what has
// none never will.
func (b *batch) giveUp(err error) {
	for r := range b.inAir {
		delete(b.inAir, r)
		result := r.unanswered(r.flight.giveUp(), err)
		for k := range r.entries {
			b.results[r.entries[k].index] = result
		}
	}
}
