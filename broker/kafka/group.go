package kafka

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// assigned: from now on these partitions are ours.
func (s *subscription) assigned(ctx context.Context, client *kgo.Client, added map[string][]int32) {
	numbers := added[s.topic]
	if len(numbers) == 0 {
		return
	}
	if s.of.cfg.Start == FromNow {
		s.beginNow(ctx, client, numbers)
	}
	s.mu.Lock()
	for _, n := range numbers {
		s.parts[n] = newPart(n)
	}
	s.mu.Unlock()
	client.ResumeFetchPartitions(map[string][]int32{s.topic: numbers}) // they may have been full when they went
	s.log.Debug("partitions assigned", "partitions", numbers)
}

// beginNow commits where partitions ended at Subscribe that have no offset
// yet, so that the next holder does not begin later.
func (s *subscription) beginNow(ctx context.Context, client *kgo.Client, numbers []int32) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	committed, err := kadm.NewClient(client).FetchOffsetsForTopics(ctx, s.of.cfg.Group, s.topic)
	if err != nil {
		s.log.Warn("a group's offsets cannot be read: it may begin with what was there before", "error", err)
		return
	}
	offsets := make(map[int32]kgo.EpochOffset)
	for _, n := range numbers {
		if o, ok := committed.Lookup(s.topic, n); ok && o.At >= 0 {
			continue
		}
		if end, ok := s.ends.Lookup(s.topic, n); ok && end.Err == nil { // a newer partition is read from its beginning
			offsets[n] = kgo.EpochOffset{Epoch: -1, Offset: end.Offset}
		}
	}
	s.committing.Lock()
	defer s.committing.Unlock()
	s.send(ctx, client, offsets)
}

// revoked: these partitions go to another member, which waits for us. What is
// with handlers may be finished, up to half of the rebalance timeout; then it is
// cancelled. What was handled is committed.
func (s *subscription) revoked(_ context.Context, client *kgo.Client, gone map[string][]int32) {
	parts := s.still(gone)
	if len(parts) == 0 {
		return
	}
	match := func(t taken) bool { return parts[t.part] }
	ctx, cancel := context.WithTimeout(context.Background(), s.of.cfg.RebalanceTimeout/2)
	defer cancel()
	s.finish(s.of.cfg.RebalanceTimeout/4, match)
	s.room.Withdraw(match)
	if s.room.Await(ctx, match) != nil {
		s.cancel(match, s.of.cfg.RebalanceTimeout/4)
	}
	s.collect()
	s.committing.Lock()
	defer s.committing.Unlock()
	bounded, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	s.firmly(bounded, client, s.marks(parts))
	s.forget(parts)
	s.log.Debug("partitions revoked", "partitions", gone[s.topic])
}

// lost: these partitions are somebody else's already.
func (s *subscription) lost(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	parts := s.still(gone)
	if len(parts) == 0 {
		return
	}
	s.forget(parts)
	s.cancel(func(t taken) bool { return parts[t.part] }, closeGrace)
	s.log.Warn("partitions are lost: the group has gone on without this member; what was in flight is delivered again", "partitions", gone[s.topic])
}

// finish has handled what stands, in its partition, before a record that is
// with a handler or was: the offset that can be committed ends at the first one
// that is missing, and what was handled beyond would be handled again. All else is
// forgotten. A key that waits to be tried again is not waited for, or not long.
func (s *subscription) finish(within time.Duration, match func(taken) bool) {
	s.room.WithdrawBeyond(
		func(t taken) { t.part.handing(t.record.Offset) },
		func(t taken) bool { return match(t) && t.record.Offset > t.part.top.Load() })
	began := time.Now()
	for end := began.Add(within); time.Now().Before(end); {
		unread, before := len(s.room.Out()), s.room.Stats().Buffered
		ctx, cancel := context.WithTimeout(context.Background(), min(idleAfter, time.Until(end)))
		err := s.room.Quiet(ctx, match)
		cancel()
		if err == nil && time.Since(began) < idleAfter && s.holds(match) {
			time.Sleep(5 * time.Millisecond) // what is left was nacked: perhaps it comes again at once
			continue
		}
		if err == nil || unread > 0 && unread == len(s.room.Out()) && before == s.room.Stats().Buffered {
			return // done, or nobody reads the channel; what is left then is handled again
		}
	}
}

// holds says that something is left in the room.
func (s *subscription) holds(match func(taken) bool) (some bool) {
	s.room.Each(func(t taken, _ bool) { some = some || match(t) })
	return some
}

// idleAfter: if nothing has happened for so long, the channel is full of
// messages that nobody wants.
const idleAfter = 500 * time.Millisecond

// handing: the record at offset goes to a handler.
func (p *part) handing(offset int64) {
	for {
		top := p.top.Load()
		if offset <= top || p.top.CompareAndSwap(top, offset) {
			return
		}
	}
}

func newPart(n int32) *part {
	p := &part{number: n, name: strconv.Itoa(int(n)), committed: -1}
	p.top.Store(-1)
	return p
}

// cancel ends the contexts of what is in flight, and waits a little for the
// handlers to heed it.
func (s *subscription) cancel(match func(taken) bool, grace time.Duration) {
	if n := s.room.Lose(match, ErrRevoked); n > 0 {
		s.log.Warn("handlers were cancelled: their partitions go to another consumer, which gets their records again", "records", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_ = s.room.Await(ctx, match) // who does not heed it runs on
}

// still is what of these partitions is ours.
func (s *subscription) still(gone map[string][]int32) map[*part]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := make(map[*part]bool)
	for _, n := range gone[s.topic] {
		if p := s.parts[n]; p != nil {
			parts[p] = true
		}
	}
	return parts
}

func (s *subscription) forget(parts map[*part]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range parts {
		delete(s.parts, p.number)
	}
}

// marks is what there is to commit of these partitions; of all, if nil.
func (s *subscription) marks(parts map[*part]bool) map[int32]kgo.EpochOffset {
	s.mu.Lock()
	defer s.mu.Unlock()
	offsets := make(map[int32]kgo.EpochOffset)
	for n, p := range s.parts {
		if parts != nil && !parts[p] {
			continue
		}
		if low, ok := p.mark.Low(); ok && low > p.committed && p.handled {
			offsets[n] = kgo.EpochOffset{Epoch: -1, Offset: low}
		}
	}
	return offsets
}

// commitLoop commits what is handled, not too often, until stop.
func (s *subscription) commitLoop(stop <-chan struct{}) {
	pace := time.NewTimer(0)
	defer pace.Stop()
	for {
		select {
		case <-s.dirty:
		case <-stop:
			return
		}
		select {
		case <-pace.C:
		case <-stop:
			return
		}
		s.commit()
		pace.Reset(commitEvery)
	}
}

func (s *subscription) commit() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	s.committing.Lock()
	defer s.committing.Unlock()
	if s.send(ctx, s.client, s.marks(nil)) != nil {
		select {
		case s.dirty <- struct{}{}: // once more
		default:
		}
	}
}

// commitLast commits what there is before we leave.
func (s *subscription) commitLast() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	s.committing.Lock()
	defer s.committing.Unlock()
	s.firmly(ctx, s.client, s.marks(nil))
}

// firmly commits offsets as long as a refusal may pass: there is no other time
// for it. committing is held.
func (s *subscription) firmly(ctx context.Context, client *kgo.Client, offsets map[int32]kgo.EpochOffset) {
	for {
		err := s.send(ctx, client, offsets)
		if err == nil || !kerr.IsRetriable(err) && !errors.Is(err, kerr.RebalanceInProgress) && !errors.Is(err, kerr.StaleMemberEpoch) {
			return
		}
		again := time.NewTimer(100 * time.Millisecond)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return
		}
	}
}

// send commits offsets. committing is held.
func (s *subscription) send(ctx context.Context, client *kgo.Client, offsets map[int32]kgo.EpochOffset) error {
	if len(offsets) == 0 {
		return nil
	}
	var failure error
	done := make(map[int32]bool, len(offsets))
	client.CommitOffsetsSync(ctx, map[string]map[int32]kgo.EpochOffset{s.topic: offsets},
		func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
			if failure = err; err != nil {
				return
			}
			for _, t := range resp.Topics {
				for _, p := range t.Partitions {
					if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
						failure = err
					} else {
						done[p.Partition] = true
					}
				}
			}
		})
	s.mu.Lock()
	for n, o := range offsets {
		if p := s.parts[n]; p != nil && done[n] {
			p.committed = o.Offset
		}
	}
	s.mu.Unlock()
	s.tellCommit(failure)
	return failure
}

// tellCommit says once that commits fail, and once that they do not any more.
// In a rebalance it is usual that they do.
func (s *subscription) tellCommit(err error) {
	switch {
	case err == nil:
		if s.uncommitted {
			s.uncommitted = false
			s.log.Info("offsets are committed again")
		}
	case errors.Is(err, kerr.RebalanceInProgress), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.UnknownMemberID),
		errors.Is(err, kerr.StaleMemberEpoch), errors.Is(err, context.Canceled):
	case !s.uncommitted:
		s.uncommitted = true
		s.log.Warn("offsets cannot be committed; it is tried again until it works, and until then a restart repeats what was handled", "error", err)
	}
}
