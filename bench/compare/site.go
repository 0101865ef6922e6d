package compare

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/postbus/postbus/bench/harness"
	"github.com/postbus/postbus/outbox"
)

// broker is one of those that ours has an adapter for.
type broker struct {
	name   string
	server harness.Server
	// How many messages a turn takes: a second's worth or two, at the limit's rate.
	publish, drain, consume size
	// open makes a site of that name on the server.
	open func(ctx context.Context, name string) (site, error)
	// notes say what a reader of the figures must know.
	publishNote, drainNote, consumeNote string
}

// size is how many messages a turn takes in a full and in a quick run.
type size struct{ full, quick int }

func (s size) of(e *harness.Env) int { return harness.Pick(e, s.full, s.quick) }

// site is a topic, a queue or a stream of the bench's own on a real server, with the
// programs that publish to it and consume from it.
type site interface {
	topic() string
	// empty takes out all messages.
	empty(ctx context.Context) error
	// held is how many messages are in it.
	held(ctx context.Context) (int, error)
	// unread has all messages unread once more; it is asked for where reading takes none out.
	unread(ctx context.Context) error
	// left is how many messages nobody has acknowledged since then.
	left(ctx context.Context) (int, error)
	// forgets is how many acknowledgements the server may forget when a consumer goes.
	forgets() int
	// remove deletes it from the server, and closes all connections.
	remove(ctx context.Context) error

	publisher() (ourPublisher, error)
	subscriber(inFlight int) (message.Subscriber, error)

	// rawPublish, rawDrain and rawConsume are the limits.
	rawPublish(ctx context.Context, msgs []*outbox.Message) error
	rawDrain(ctx context.Context, e *harness.Env, rows int) (float64, error)
	rawConsume(ctx context.Context, out chan<- *message.Message) error

	stockPublisher() (message.Publisher, error)
	stockSubscriber() (message.Subscriber, error)
}

type ourPublisher interface {
	message.Publisher
	outbox.BatchPublisher
}

// on opens a site, has f use it, and removes it whatever happens.
func (b broker) on(ctx context.Context, e *harness.Env, f func(site) error) (err error) {
	s, err := b.open(ctx, e.Schema)
	if s != nil {
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			if left := s.remove(ctx); left != nil {
				err = errors.Join(err, fmt.Errorf("remove %s from %s: %w; %w", e.Schema, b.name, left, harness.ErrLeftBehind))
			}
		}()
	}
	if err != nil {
		return fmt.Errorf("set up %s: %w", b.name, err)
	}
	return f(s)
}

// holds makes sure that a program has written what it says, at least once.
func holds(ctx context.Context, s site, want int) error {
	return counted(ctx, func(ctx context.Context) (int, error) {
		n, err := s.held(ctx)
		return -n, err
	}, -want, "are in the topic")
}

// counted waits until count gives no more than most: some servers count behind.
func counted(ctx context.Context, count func(context.Context) (int, error), most int, what string) error {
	for giveUp := time.Now().Add(10 * time.Second); ; {
		n, err := count(ctx)
		if err != nil {
			return err
		}
		if n <= most {
			return nil
		}
		if time.Now().After(giveUp) {
			return fmt.Errorf("%d messages %s instead of %d", max(n, -n), what, max(most, -most))
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// publishBatch is PublishBatch with one error.
func publishBatch(ctx context.Context, p outbox.BatchPublisher, msgs []*outbox.Message, results []outbox.Result) error {
	results = results[:len(msgs)]
	clear(results)
	p.PublishBatch(ctx, msgs, results)
	for _, r := range results {
		if r.Status != outbox.Done {
			return fmt.Errorf("a message was not accepted (%s): %w", r.Status, r.Err)
		}
	}
	return nil
}
