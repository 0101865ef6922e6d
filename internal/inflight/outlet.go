package inflight

import (
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
)

// An Outlet is one channel for several rooms, as one subscription has them that
// reads several sources which come and go. Whoever made it closes it, when all
// its rooms are closed.
type Outlet struct {
	out chan *message.Message
	mu  sync.Mutex // one room at a time takes back
}

// NewOutlet makes an outlet for rooms that have no more than that many messages
// in flight, all together.
func NewOutlet(maxInFlight int) *Outlet {
	return &Outlet{out: make(chan *message.Message, maxInFlight)}
}

// Out is the channel for the consumer.
func (o *Outlet) Out() <-chan *message.Message { return o.out }

// Close closes the channel.
func (o *Outlet) Close() { close(o.out) }
