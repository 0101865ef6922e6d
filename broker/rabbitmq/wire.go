package rabbitmq

import (
	"bufio"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A wire is a network connection whose Write never waits. amqp091-go writes
// under a lock, without a deadline: a server that has stopped reading (a memory
// or disk alarm, a peer that hangs) would otherwise hold up every call on the
// connection, Close too. What is written goes into a buffer; one goroutine
// carries it to the socket, as much at a time as there is. So frames that follow
// each other closely also share a system call.
//
// The buffer grows without a bound of its own: publishers look at backlog
// before they write more, and everything else that is written is small.
type wire struct {
	net.Conn
	reads *bufio.Reader // amqp091-go's own buffer holds six small messages

	mu       sync.Mutex
	buffer   []byte
	accepted uint64 // bytes ever given to Write
	broken   error
	moved    chan struct{} // closed when some of the backlog has gone, or the wire is cut; made by who waits

	wake    chan struct{}
	written atomic.Uint64 // bytes that the socket has taken
	heard   atomic.Int64  // when the server has last sent anything, in Unix nanoseconds
	done    chan struct{} // closed by cut
	once    sync.Once
	pumping sync.WaitGroup
}

const (
	readBuffer  = 64 << 10
	spareBuffer = 1 << 20 // a buffer that has grown beyond it is not kept
)

var errCut = errors.New("the connection was given up")

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn, reads: bufio.NewReaderSize(conn, readBuffer),
		wake: make(chan struct{}, 1), done: make(chan struct{})}
	w.heard.Store(time.Now().UnixNano())
	w.pumping.Go(w.pump)
	return w
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.reads.Read(b)
	if n > 0 {
		w.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Write takes all of b, or none if the wire is broken.
func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	if w.broken != nil {
		defer w.mu.Unlock()
		return 0, w.broken
	}
	w.buffer = append(w.buffer, b...)
	w.accepted += uint64(len(b))
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (w *wire) pump() {
	var going []byte
	for {
		select {
		case <-w.wake:
		case <-w.done:
			return
		}
		for {
			w.mu.Lock()
			going, w.buffer = w.buffer, going[:0]
			w.mu.Unlock()
			if len(going) == 0 {
				break
			}
			n, err := w.Conn.Write(going)
			w.written.Add(uint64(n))
			w.mu.Lock()
			if err != nil && w.broken == nil {
				w.broken = err
			}
			w.tellMoved()
			w.mu.Unlock()
			if err != nil {
				w.cut()
				return
			}
			if cap(going) > spareBuffer {
				going = nil
			}
		}
	}
}

func (w *wire) tellMoved() {
	if w.moved != nil {
		close(w.moved)
		w.moved = nil
	}
}

// position is the number of bytes given to Write so far. What was written before
// has left this process, or not, as sentTo tells.
func (w *wire) position() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.accepted
}

// sentTo tells whether the socket has taken anything beyond a position.
func (w *wire) sentTo(position uint64) bool { return w.written.Load() > position }

// backlog is what the socket has not taken yet. If it is more than limit, less
// is closed when some of it has gone.
func (w *wire) backlog(limit uint64) (less <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil || w.accepted-w.written.Load() <= limit {
		return nil
	}
	if w.moved == nil {
		w.moved = make(chan struct{})
	}
	return w.moved
}

// leaves waits until the socket has taken what was written before now, for at
// most patience, and tells whether it has.
func (w *wire) leaves(patience time.Duration) bool {
	late := time.NewTimer(patience)
	defer late.Stop()
	for upTo := w.position(); ; {
		less := w.backlog(0)
		switch {
		case w.written.Load() >= upTo:
			return true
		case less == nil:
			return false // broken
		}
		select {
		case <-less:
		case <-late.C:
			return false
		}
	}
}

// heardSince tells whether the server has sent anything since t.
func (w *wire) heardSince(t time.Time) bool { return w.heard.Load() >= t.UnixNano() }

// cut gives the connection up: nothing more is sent, not even what the kernel
// still holds. amqp091-go's goroutines end by it.
func (w *wire) cut() {
	if tcp, ok := innermost(w.Conn).(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	w.Close()
}

// Close closes the socket. amqp091-go calls it, and so does cut.
func (w *wire) Close() error {
	err := net.ErrClosed
	w.once.Do(func() {
		// The socket itself: a TLS connection would first want to say goodbye, which
		// waits for a peer that may not read.
		err = innermost(w.Conn).Close()
		w.mu.Lock()
		if w.broken == nil {
			w.broken = errCut
		}
		w.tellMoved()
		w.mu.Unlock()
		close(w.done)
	})
	return err
}

func innermost(c net.Conn) net.Conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return c
}
