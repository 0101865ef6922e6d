package sqs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// Lag is how far the consumers of one queue are behind, all of them together. SQS
// counts approximately: figures may be some seconds old.
type Lag struct {
	Queue    string
	Messages int64 // in the queue: the sum of the next three
	Visible  int64 // waiting to be received
	InFlight int64 // received, by anybody, and not deleted
	Delayed  int64 // not to be received yet

	// Oldest is the age of the oldest message that this Subscriber has received and not
	// settled, since it was sent; 0 if it has none. SQS tells the age of those that
	// wait to CloudWatch only (ApproximateAgeOfOldestMessage): with messages
	// waiting, the oldest is at least about as old as this in a FIFO queue, and may be
	// older in a standard one.
	Oldest time.Duration
}

var lagAttributes = []types.QueueAttributeName{types.QueueAttributeNameApproximateNumberOfMessages,
	types.QueueAttributeNameApproximateNumberOfMessagesNotVisible, types.QueueAttributeNameApproximateNumberOfMessagesDelayed}

// Lag asks SQS about every queue that is subscribed to, in the order of their names. It
// needs the right sqs:GetQueueAttributes. After Close there is nothing to ask
// about. Errors: what AWS or the network answered, joined; the queues that
// answered are in the list all the same.
func (s *Subscriber) Lag(ctx context.Context) ([]Lag, error) {
	s.mu.Lock()
	of := make(map[string][]*subscription)
	for sub := range s.subs {
		if sub.ready.Load() {
			of[sub.queue] = append(of[sub.queue], sub)
		}
	}
	s.mu.Unlock()
	var all []Lag
	var errs []error
	for queue, subs := range of {
		l, err := subs[0].lag(ctx)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, sub := range subs {
			l.Oldest = max(l.Oldest, sub.oldest())
		}
		l.Queue = queue
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Lag) int {
		if a.Queue < b.Queue {
			return -1
		}
		return 1
	})
	return all, errors.Join(errs...)
}

func (s *subscription) lag(ctx context.Context) (l Lag, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var out *awssqs.GetQueueAttributesOutput
	if err := bounded(ctx, func() (err error) {
		out, err = s.of.cfg.Client.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: s.url, AttributeNames: lagAttributes}, once)
		return err
	}); err != nil {
		return l, fmt.Errorf("ask for the lag: %w", lookUpError(s.queue, err))
	}
	number := func(name types.QueueAttributeName) int64 {
		n, err := strconv.ParseInt(out.Attributes[string(name)], 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	l.Visible, l.InFlight, l.Delayed = number(lagAttributes[0]), number(lagAttributes[1]), number(lagAttributes[2])
	l.Messages = l.Visible + l.InFlight + l.Delayed
	return l, nil
}

// oldest goes by the clock of this process and that of SQS.
func (s *subscription) oldest() (age time.Duration) {
	now := time.Now()
	s.room.Each(func(r *received, _ bool) {
		if !r.sent.IsZero() {
			age = max(age, now.Sub(r.sent), time.Nanosecond)
		}
	})
	return age
}
