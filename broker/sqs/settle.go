package sqs

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/cenkalti/backoff/v5"

	"github.com/postbus/postbus/internal/inflight"
)

const (
	// ackLinger is for how long an ack waits for others to be deleted with it: up to
	// ten go for the price of one.
	ackLinger = 20 * time.Millisecond
	// settleRequests is how many requests to delete or give back are under way at once.
	settleRequests = 8
	// settlePatience is how long a request to delete or give back is tried again.
	settlePatience = 15 * time.Second
)

// settle deletes what was handled and gives back what was not, until the room is
// drained.
func (s *subscription) settle() {
	var (
		results  []inflight.Result[*received]
		acked    []*received
		requests sync.WaitGroup
		slots    = make(chan struct{}, settleRequests)
		linger   = time.NewTimer(time.Hour)
	)
	linger.Stop()
	defer linger.Stop()
	flush := func(n int) {
		part := acked[:n:n]
		acked = acked[n:]
		slots <- struct{}{}
		requests.Go(func() {
			s.delete(part)
			<-slots
		})
	}
	for open := true; open; {
		due := false
		select {
		case _, open = <-s.room.Changed():
		case <-linger.C:
			due = true
		}
		results = s.room.Take(results[:0])
		waited := len(acked) > 0
		back := make(map[time.Duration][]*received)
		for _, r := range results {
			s.leaves(r.Token)
			if r.Outcome == inflight.Acked {
				acked = append(acked, r.Token)
				continue
			}
			delay := time.Duration(0)
			if r.Handed {
				delay = s.nackDelay(r.Token)
			}
			back[delay] = append(back[delay], r.Token)
		}
		for delay, all := range back {
			slots <- struct{}{}
			requests.Go(func() {
				s.giveBack(all, delay)
				<-slots
			})
		}
		for len(acked) >= maxEntries {
			flush(maxEntries)
			waited = false
		}
		switch {
		case len(acked) == 0:
			linger.Stop()
		case due || !open || s.stopping():
			flush(len(acked))
		case !waited:
			linger.Reset(ackLinger)
		}
	}
	requests.Wait()
}

// nackDelay is for how long a message that was nacked stays hidden.
func (s *subscription) nackDelay(r *received) time.Duration {
	cfg := &s.of.cfg
	if cfg.NackDelay == AtOnce || s.stopping() {
		return 0
	}
	d := cfg.NackDelay
	for n := 1; n < r.receives && d < cfg.MaxNackDelay; n++ {
		d *= 2
	}
	return min(d, cfg.MaxNackDelay)
}

// giveBack makes messages visible after delay. What SQS does not answer for becomes
// visible by itself, when its visibility is over.
func (s *subscription) giveBack(all []*received, delay time.Duration) {
	for part := range slices.Chunk(all, maxEntries) {
		s.insist(part, "messages could not be given back; they are hidden from all until their visibility is over", func(part []*received) (rest []*received) {
			for i, result := range s.changeVisibility(part, delay, answerTimeout) {
				if result == unanswered {
					rest = append(rest, part[i])
				}
			}
			return rest
		})
	}
}

// insist tries a request again for those of its messages that are not settled by
// it, for some time, which is shorter at the stop.
func (s *subscription) insist(all []*received, givenUp string, try func([]*received) (rest []*received)) {
	pauses := &backoff.ExponentialBackOff{InitialInterval: 100 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 2 * time.Second}
	giveUp := time.Now().Add(settlePatience)
	for {
		if all = try(all); len(all) == 0 {
			return
		}
		if s.stopping() {
			giveUp = earlier(giveUp, time.Now().Add(2*answerTimeout))
		}
		if time.Now().After(giveUp) {
			s.log.Warn(givenUp, "messages", len(all))
			return
		}
		<-time.After(pauses.NextBackOff())
	}
}

// delete removes up to ten handled messages from the queue. What cannot be
// deleted is delivered again.
func (s *subscription) delete(all []*received) {
	s.insist(all, "messages were handled and could not be deleted; they are delivered again", func(all []*received) []*received {
		rest, lost := s.deleteOnce(all)
		if lost > 0 {
			s.log.Warn("messages were handled and could not be deleted, since they had become visible again; they are delivered again", "messages", lost)
		}
		return rest
	})
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// deleteOnce is one request; rest are those that it may be worth to try again.
func (s *subscription) deleteOnce(all []*received) (rest []*received, lost int) {
	in := &awssqs.DeleteMessageBatchInput{QueueUrl: s.url, Entries: make([]types.DeleteMessageBatchRequestEntry, len(all))}
	for i, r := range all {
		in.Entries[i] = types.DeleteMessageBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: r.raw.ReceiptHandle}
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	var out *awssqs.DeleteMessageBatchOutput
	if err := bounded(ctx, func() (err error) {
		out, err = s.of.cfg.Client.DeleteMessageBatch(ctx, in, once)
		return err
	}); err != nil {
		return all, 0
	}
	settled := make([]bool, len(all))
	for _, ok := range out.Successful {
		if i := entryIndex(ok.Id, len(all)); i >= 0 {
			settled[i] = true
		}
	}
	for _, failed := range out.Failed {
		if i := entryIndex(failed.Id, len(all)); i >= 0 && notOurs(aws.ToString(failed.Code), failed.SenderFault) {
			settled[i] = true
			lost++
		}
	}
	for i, r := range all {
		if !settled[i] {
			rest = append(rest, r)
		}
	}
	return rest, lost
}
