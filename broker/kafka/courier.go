package kafka

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A courier is a franz-go client that carries one call's batch at a time and
// nobody else's. Why not one client for all calls:
//
//   - After a record has failed, franz-go fails all that stand behind it in its
//     partition, but takes what comes next: the rest of the batch, if that is still
//     being handed to it. So nothing may be sent before all of it is there
//     (kgo.ManualFlushing), and a flush is of the whole client.
//   - A record that has been sent cannot be cancelled: its sequence number may be
//     taken. When the call's deadline comes first, the client has to go, and a new
//     one to come with a producer id of its own. That must not hit other calls.
//   - A context that ends takes everybody's records of the partition along.
//
// A courier that had any trouble at all is not used again.
type courier struct {
	client *kgo.Client
	slots  []*slot
	w      writer

	left    atomic.Int64  // records without a partition as yet
	ready   chan struct{} // capacity 1: none is left
	refused atomic.Bool   // a record has failed before it had a partition
	limits  limits
	line    line
}

// A slot is the room for one record. Its promise is made once.
type slot struct {
	record  kgo.Record
	promise func(*kgo.Record, error)
	index   int32 // of the call's message
	suspect int32 // which group of suspects it belongs to, -1: none
	err     error
	done    atomic.Bool // err is written
}

func newCourier(opts []kgo.Opt, h Hasher) (*courier, error) {
	c := &courier{ready: make(chan struct{}, 1)}
	client, err := newClient(append(opts[:len(opts):len(opts)],
		kgo.ManualFlushing(),
		kgo.RecordPartitioner(newPartitioner(h, c.arrived)),
		kgo.ProducerBatchMaxBytesFn(c.limits.ofBatch),
		kgo.WithHooks(&c.line),
	)...)
	c.client = client
	return c, err
}

func (c *courier) begin(n int) {
	for len(c.slots) < n {
		s := new(slot)
		s.promise = func(r *kgo.Record, err error) {
			unplaced := r.Partition < 0
			s.err = err
			s.done.Store(true)
			if unplaced {
				c.refused.Store(true)
				c.arrived()
			}
		}
		c.slots = append(c.slots, s)
	}
	c.refused.Store(false)
	c.line.wrote.Store(false)
	c.left.Store(int64(n))
	select {
	case <-c.ready:
	default:
	}
}

// skip takes back one of the records that begin has announced.
func (c *courier) skip() { c.arrived() }

// arrived: a record has its partition, or never will.
func (c *courier) arrived() {
	if c.left.Add(-1) == 0 {
		c.ready <- struct{}{}
	}
}

// flush sends what the client has, once all of it has a partition, and waits
// for the answers, but not beyond hard. It returns false if it has sent nothing
// because one record was refused before.
func (c *courier) flush(hard context.Context) (sent bool, err error) {
	select {
	case <-c.ready:
	case <-hard.Done():
		return false, hard.Err()
	}
	if c.refused.Load() {
		return false, nil
	}
	return true, c.client.Flush(hard)
}

// dismiss closes the client: nothing is sent any more, and nothing of the
// caller's is read, when it returns; unless that takes longer than it should.
func (c *courier) dismiss(calls *sync.WaitGroup) { dismiss(c.client, calls) }

func dismiss(client *kgo.Client, calls *sync.WaitGroup) {
	const patience = 200 * time.Millisecond
	done := make(chan struct{})
	calls.Add(1)
	go func() {
		defer calls.Done()
		defer close(done)
		client.Close()
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// rest forgets the batch, and keeps the room.
func (c *courier) rest() {
	for _, s := range c.slots {
		if s.record.Topic == "" {
			break
		}
		s.record, s.err = kgo.Record{}, nil
	}
	clear(c.w.headers)
}

// couriers are those that have nothing to do, and a bound for all.
type couriers struct {
	opts   []kgo.Opt
	hasher Hasher
	busy   chan struct{} // one for each courier that carries

	mu   sync.Mutex
	idle []*courier // the last one has just come back
}

const (
	maxCouriers     = 64 // calls beyond wait
	maxIdleCouriers = 16
)

func newCouriers(opts []kgo.Opt, h Hasher) *couriers {
	return &couriers{opts: opts, hasher: h, busy: make(chan struct{}, maxCouriers)}
}

func (p *couriers) take(ctx context.Context) (*courier, error) {
	select {
	case p.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	p.mu.Unlock()
	c, err := newCourier(p.opts, p.hasher)
	if err != nil {
		<-p.busy
	}
	return c, err
}

// put takes back a courier that is as good as new; nil: the one taken is gone.
func (p *couriers) put(c *courier, calls *sync.WaitGroup) {
	<-p.busy
	if c == nil {
		return
	}
	c.rest()
	p.mu.Lock()
	full := len(p.idle) >= maxIdleCouriers
	if !full {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if full {
		c.dismiss(calls)
	}
}

func (p *couriers) close() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, c := range idle {
		c.client.Close()
	}
}
