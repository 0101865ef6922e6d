package rabbitmq

import (
	"errors"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/postbus/postbus/internal/inflight"
)

// A consumer is a channel on which a queue's messages come. Delivery tags belong
// to the channel, so every delivery keeps its consumer.
type consumer struct {
	s          *session
	queue      string
	prefetch   int
	ch         *amqp.Channel
	deliveries <-chan amqp.Delivery
	cancelled  chan string
	closed     chan *amqp.Error

	told atomic.Bool // something of it was acknowledged

	over  chan struct{} // closed by watch when the channel is
	cause *amqp.Error
}

// errCancelled: RabbitMQ has sent basic.cancel.
var errCancelled = errors.New("RabbitMQ has cancelled the consumer: the queue was deleted, or its node went away")

func (c *consumer) take(d amqp.Delivery) inflight.Delivery[*delivery] {
	taken := &delivery{Delivery: d, from: c, since: time.Now()}
	return inflight.Delivery[*delivery]{Key: taken.key(), Size: len(d.Body), Token: taken}
}

// watch waits for the channel's end.
func (c *consumer) watch() {
	c.cause = <-c.closed
	close(c.over)
}

func (c *consumer) ended() <-chan struct{} { return c.over }

// why there are no deliveries any more.
func (c *consumer) why() error {
	if !c.ch.IsClosed() {
		return errCancelled
	}
	<-c.over
	if c.cause == nil || c.s.ended() {
		return c.s.lost()
	}
	return tidy(c.cause)
}

// acksArrive is how long acknowledgements have from the server's channel to the
// queue. A quorum queue takes them in bundles, after others are on disk, and those
// still with the channel when it closes are forgotten: their messages come again.
// Without a pause some 50 did at each close of a busy consumer, on 3.10.
const acksArrive = 100 * time.Millisecond

// close gives back what was not acknowledged. It does not wait for much longer
// than rpcTimeout, and the session's end ends it too.
func (c *consumer) close() {
	if c.told.Load() {
		c.atOnce(func() { _ = c.ch.Qos(c.prefetch, 0, false) }) // its answer says that all before it was read
		pause := time.NewTimer(acksArrive)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-c.over:
		}
	}
	c.atOnce(func() { c.ch.Close() })
	<-c.over
}

// atOnce has a request answered, or the session end.
func (c *consumer) atOnce(request func()) {
	done := make(chan struct{})
	c.s.request(func() {
		defer close(done)
		request()
	})
	<-done
}
