package sqs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
	"github.com/cenkalti/backoff/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/inflight"
	"github.com/postbus/postbus/outbox"
)

// A subscription is one Subscribe. Its pollers receive messages into the room,
// which hands them over; its keeper renews their visibility; its settler deletes
// and gives back what leaves the room.
type subscription struct {
	of    *Subscriber
	queue string
	fifo  bool
	url   *string
	log   *slog.Logger
	room  *inflight.Room[*received]
	done  chan struct{} // closed by stop
	once  sync.Once
	ready atomic.Bool // url is known

	batch int // how many messages a poller asks for
	mu    sync.Mutex
	free  int       // how many more may be here: received, or asked for
	awake int       // how many pollers are to poll
	more  sync.Cond // free or awake has grown, or we are to stop

	broken health
}

// received is a message that is here.
type received struct {
	raw      types.Message
	group    string
	receives int
	sent     time.Time
	first    time.Time    // when it was asked for
	until    time.Time    // when it becomes visible again, at the earliest; the keeper's, once it is in the room
	gone     atomic.Bool  // it takes no room any more
	handed   atomic.Int64 // when it was handed over, in nanoseconds since first; 0: it was not
}

func newSubscription(s *Subscriber, ctx context.Context, queue string) *subscription {
	n := s.cfg.MaxInFlight
	sub := &subscription{of: s, queue: queue, fifo: isFIFO(queue), log: s.cfg.Logger.With("queue", queue),
		done: make(chan struct{}), batch: min(n, maxEntries), free: 2 * n, awake: 1}
	sub.more.L = &sub.mu
	if sub.fifo {
		sub.free = 10 * max(n, 2)
	}
	sub.broken.log = sub.log
	sub.room = inflight.New(ctx, inflight.Config[*received]{
		Build: func(r *received, _ int) *message.Message {
			r.handed.Store(max(1, int64(time.Since(r.first))))
			return r.build(queue)
		},
		Nacked: func(*received, int) inflight.Verdict {
			if sub.fifo {
				return inflight.GiveBackKey
			}
			return inflight.GiveBack
		},
		MaxInFlight: n, MaxBuffered: sub.free, MaxBufferedBytes: 1 << 40, // bounded by count
		CloseTimeout: s.cfg.CloseTimeout, CloseGrace: min(closeGrace, s.cfg.CloseTimeout), CloseCause: ErrCloseTimeout,
	})
	return sub
}

// find looks the queue up, so that a wrong name is told at once.
func (s *subscription) find(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*answerTimeout)
	defer cancel()
	var out *awssqs.GetQueueUrlOutput
	err := asked(ctx, func() error {
		return bounded(ctx, func() (err error) {
			out, err = s.of.cfg.Client.GetQueueUrl(ctx, &awssqs.GetQueueUrlInput{QueueName: &s.queue}, once)
			return err
		})
	})
	if err != nil {
		return lookUpError(s.queue, err)
	}
	s.url = out.QueueUrl
	s.ready.Store(true)
	return nil
}

// lookUpError says in one sentence why a queue or topic could not be looked up.
func lookUpError(name string, err error) error {
	if v, code, reply, answered := judgeCall(err); answered {
		return refused(name, "", code, reply, v).Err
	}
	if op := (*smithy.OperationError)(nil); errors.As(err, &op) {
		err = op.Err // without the SDK's preamble
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("look up %q: %w", name, err)
	}
	return fmt.Errorf("look up %q: %w: %w", name, outbox.ErrUnavailable, err)
}

// bounded returns when ctx is done, even if f, whose HTTP client may not heed it,
// does not.
func bounded(ctx context.Context, f func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- f() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		select {
		case err := <-ended:
			return err
		default:
			return ctx.Err()
		}
	}
}

func (s *subscription) stop() {
	s.once.Do(func() {
		s.mu.Lock()
		close(s.done)
		s.mu.Unlock()
		s.more.Broadcast()
	})
}

// run ends when everything is settled after stop, or the end of ctx.
func (s *subscription) run(ctx context.Context) {
	defer context.AfterFunc(ctx, s.stop)()
	var pollers, keeper, settler sync.WaitGroup
	for n := range s.pollers() {
		pollers.Go(func() { s.poll(n) })
	}
	drained := make(chan struct{})
	keeper.Go(func() { s.keep(drained) })
	settler.Go(s.settle)
	<-s.done

	// The handlers finish while the pollers come back, which give back themselves
	// what they get from now on.
	left := s.room.Close()
	if len(left) > 0 {
		s.of.abandoned.Add(int64(len(left)))
		s.log.Warn("handlers have not come back in time to close; their messages are delivered again", "messages", len(left))
	}
	settler.Wait()
	close(drained)
	pollers.Wait()
	keeper.Wait()
}

func (s *subscription) stopping() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *subscription) pollers() int { return (s.of.cfg.MaxInFlight + maxEntries - 1) / maxEntries }

// poll receives, as long as there is room, through any trouble. It is one of several:
// only the first polls an empty queue, others join as batches come full.
func (s *subscription) poll(n int) {
	pauses := &backoff.ExponentialBackOff{InitialInterval: 100 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: 10 * time.Second}
	attempt := ""
	for s.reserve(n) {
		messages, err := s.receive(&attempt)
		s.giveRoom(s.batch - len(messages))
		if err != nil {
			if s.stopping() {
				return
			}
			s.broken.is(err)
			s.pause(pauses.NextBackOff())
			continue
		}
		s.broken.isNot()
		pauses.Reset()
		s.adapt(len(messages))
		if len(messages) == 0 {
			continue
		}
		deliveries := make([]inflight.Delivery[*received], len(messages))
		for i, r := range messages {
			deliveries[i] = inflight.Delivery[*received]{Key: s.key(r), Size: len(aws.ToString(r.raw.Body)), Token: r}
		}
		if err := s.room.Add(deliveries); err != nil { // closed meanwhile
			s.giveBack(messages, 0)
			s.giveRoom(len(messages))
			return
		}
	}
}

func (s *subscription) key(r *received) string {
	if s.fifo {
		return r.group
	}
	return aws.ToString(r.raw.MessageAttributes[events.HeaderPartitionKey].StringValue)
}

// receive is one request. For a FIFO queue it has an id, which a repeated request
// keeps if its answer was lost: SQS then gives out the same messages again,
// instead of keeping their groups back until they are visible. See
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-receiverequestattemptid-request-parameter.html.
func (s *subscription) receive(attempt *string) ([]*received, error) {
	cfg := &s.of.cfg
	in := &awssqs.ReceiveMessageInput{
		QueueUrl: s.url, MaxNumberOfMessages: int32(s.batch),
		WaitTimeSeconds: int32(cfg.WaitTime / time.Second), VisibilityTimeout: int32(cfg.Visibility / time.Second),
		MessageAttributeNames: []string{"All"},
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameApproximateReceiveCount,
			types.MessageSystemAttributeNameSentTimestamp, types.MessageSystemAttributeNameMessageGroupId},
	}
	if s.fifo {
		if *attempt == "" {
			*attempt = newAttemptID()
		}
		in.ReceiveRequestAttemptId = aws.String(*attempt)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cfg.WaitTime+2*answerTimeout) // what is broken off may take messages with it
	defer cancel()
	began := time.Now()
	var out *awssqs.ReceiveMessageOutput
	err := bounded(ctx, func() (err error) {
		out, err = cfg.Client.ReceiveMessage(ctx, in, once)
		return err
	})
	if err != nil {
		if _, _, _, answered := judgeCall(err); answered {
			*attempt = ""
		}
		return nil, err
	}
	*attempt = ""
	all := make([]*received, len(out.Messages))
	for i, m := range out.Messages {
		r := &received{raw: m, group: m.Attributes[string(types.MessageSystemAttributeNameMessageGroupId)], receives: 1,
			first: began, until: began.Add(cfg.Visibility)}
		if n, err := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)]); err == nil {
			r.receives = n
		}
		r.sent = sentTime(&m)
		all[i] = r
	}
	return all, nil
}

// sentTime is when SQS got a message; zero if it does not say.
func sentTime(m *types.Message) time.Time {
	ms, err := strconv.ParseInt(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)], 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// adapt lets one more poller poll when a batch was not nearly empty, and one less
// when there was nothing.
func (s *subscription) adapt(got int) {
	s.mu.Lock()
	switch {
	case got == 0:
		s.awake = max(1, s.awake-1)
	case 2*got >= s.batch:
		s.awake = min(s.pollers(), s.awake+1)
	}
	s.mu.Unlock()
	s.more.Broadcast()
}

// reserve waits until poller n is to poll and a batch more may be here; false when
// we are to stop.
func (s *subscription) reserve(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for (n >= s.awake || s.free < s.batch) && !s.stopping() {
		s.more.Wait()
	}
	s.free -= s.batch
	return !s.stopping()
}

func (s *subscription) giveRoom(n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	s.free += n
	s.mu.Unlock()
	s.more.Broadcast()
}

// leaves: r has left the room, one way or another.
func (s *subscription) leaves(r *received) {
	if r.gone.CompareAndSwap(false, true) {
		s.giveRoom(1)
	}
}

func (s *subscription) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.done:
	}
}

// health says a change of state once, however long it lasts, and however many
// pollers notice.
type health struct {
	log  *slog.Logger
	mu   sync.Mutex
	down bool
}

func (h *health) is(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.down {
		h.down = true
		h.log.Warn("receiving from the queue is interrupted and tried again", "error", err)
	}
}

func (h *health) isNot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		h.down = false
		h.log.Info("receiving from the queue again")
	}
}
