package sqs

import (
	"context"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/uuid"
)

func newAttemptID() string { return uuid.NewString() }

// keep renews the visibility of what is here, whether it is with a handler or
// waits for its turn, and takes out what was lost, until drained.
func (s *subscription) keep(drained <-chan struct{}) {
	cfg := &s.of.cfg
	every := cfg.Visibility / 6
	if !cfg.WithoutRenewal {
		every = min(every, cfg.HandlerLimit)
	}
	ticker := time.NewTicker(max(min(every, cfg.HandlerLimit/4+time.Millisecond), 10*time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.tend()
		case <-drained:
			return
		}
	}
}

// tend is one look at all that is here.
func (s *subscription) tend() {
	cfg := &s.of.cfg
	now := time.Now()
	var due, over, gone []*received
	s.room.Each(func(r *received, handed bool) {
		switch since := r.handed.Load(); {
		case !now.Before(r.until):
			gone = append(gone, r)
		case handed && since > 0 && now.Sub(r.first) >= time.Duration(since)+cfg.HandlerLimit,
			now.Sub(r.first)+2*cfg.Visibility > maxHidden:
			over = append(over, r)
		case !cfg.WithoutRenewal && r.until.Sub(now) <= cfg.Visibility*2/3:
			due = append(due, r)
		}
	})
	s.lose(gone, ErrLost)
	s.lose(over, ErrHandlerLimit)
	var requests sync.WaitGroup
	slots := make(chan struct{}, settleRequests)
	// A look must not take longer than what it is to find out may wait.
	patience := min(answerTimeout, cfg.Visibility/4)
	for len(due) > 0 {
		n := min(len(due), maxEntries)
		part := due[:n]
		due = due[n:]
		slots <- struct{}{}
		requests.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			var lost []*received
			for i, ok := range s.changeVisibility(part, cfg.Visibility, patience) {
				switch ok {
				case changed:
					part[i].until = began.Add(cfg.Visibility)
				case refusedForGood:
					lost = append(lost, part[i])
				}
			}
			s.lose(lost, ErrLost)
		})
	}
	requests.Wait()
}

// lose takes out of the room what is not ours any more, and in a FIFO queue what
// stands behind it in its group.
func (s *subscription) lose(gone []*received, cause error) {
	if len(gone) == 0 {
		return
	}
	set := make(map[*received]bool, len(gone))
	groups := make(map[string]bool)
	for _, r := range gone {
		set[r] = true
		groups[r.group] = true
	}
	handlers := s.room.Lose(func(r *received) bool { return set[r] }, cause)
	for _, r := range gone {
		s.leaves(r)
	}
	if s.fifo {
		s.room.Withdraw(func(r *received) bool { return groups[r.group] })
	}
	if cause == ErrHandlerLimit {
		s.log.Warn("handlers have taken longer than their limit; their messages are delivered again", "messages", len(gone), "limit", s.of.cfg.HandlerLimit)
	} else {
		s.log.Warn("messages could not be kept hidden from other consumers, who may handle them as well", "messages", len(gone), "in_handlers", handlers)
	}
}

type changing int8

const (
	unanswered changing = iota // it may have been changed
	changed
	refusedForGood // it is not ours any more
)

// changeVisibility is one request for up to ten messages.
func (s *subscription) changeVisibility(all []*received, to, patience time.Duration) []changing {
	in := &awssqs.ChangeMessageVisibilityBatchInput{QueueUrl: s.url, Entries: make([]types.ChangeMessageVisibilityBatchRequestEntry, len(all))}
	seconds := int32((to + time.Second - 1) / time.Second)
	for i, r := range all {
		in.Entries[i] = types.ChangeMessageVisibilityBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: r.raw.ReceiptHandle, VisibilityTimeout: seconds}
	}
	result := make([]changing, len(all))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out *awssqs.ChangeMessageVisibilityBatchOutput
	if err := bounded(ctx, func() (err error) {
		out, err = s.of.cfg.Client.ChangeMessageVisibilityBatch(ctx, in, once)
		return err
	}); err != nil {
		return result
	}
	for _, ok := range out.Successful {
		if i := entryIndex(ok.Id, len(all)); i >= 0 {
			result[i] = changed
		}
	}
	for _, failed := range out.Failed {
		if i := entryIndex(failed.Id, len(all)); i >= 0 && notOurs(aws.ToString(failed.Code), failed.SenderFault) {
			result[i] = refusedForGood
		}
	}
	return result
}

// notOurs: the answer says that the message was deleted, or given to another
// consumer. Sources: the errors of
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html.
func notOurs(code string, theirs bool) bool {
	switch code {
	case "ReceiptHandleIsInvalid", "MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "InvalidParameterValue":
		return true
	}
	_, known := judge(code)
	return theirs && !known
}
