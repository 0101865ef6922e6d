package testkit

import (
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy stands between a client and a server and breaks the network on
// command. It knows no protocol: it forwards bytes. All methods may be called
// from any goroutine; each holds for present and future connections until
// Resume, unless it says otherwise.
//
// A commit whose reply is lost:
//
//	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
//	pool := testkit.Pool(t, proxy.URL())
//	proxy.OnClientBytes(func(b []byte) testkit.Action {
//		if bytes.Contains(b, []byte("commit")) {
//			return testkit.LoseReply
//		}
//		return testkit.Forward
//	})
type Proxy struct {
	address  string // as given: what URL rewrites
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond // of mu; something below, or a connection, has changed
	target  string     // host:port
	links   map[*link]struct{}
	closed  bool
	refuse  bool
	stalled bool
	allow   int // reply bytes that still pass on each connection; -1: all
	delay   time.Duration
	hook    func([]byte) Action
}

// Action is what becomes of bytes that a client has sent.
type Action int

const (
	Forward   Action = iota // pass them on
	LoseReply               // pass them on, wait for the first bytes of a reply, swallow them, cut the connection
	Cut                     // cut the connection; the server never sees them
)

// NewProxy listens on a free loopback port and forwards to address, a URL or
// host:port, until the test ends.
func NewProxy(t testing.TB, address string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start a proxy: %v", err)
	}
	p := &Proxy{address: address, listener: listener, target: hostPort(address), links: map[*link]struct{}{}, allow: -1}
	p.changed = sync.NewCond(&p.mu)
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Addr is the proxy's own host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// URL is the address given to NewProxy, by way of the proxy.
func (p *Proxy) URL() string {
	u, err := url.Parse(p.address)
	if err != nil || u.Host == "" {
		return p.Addr()
	}
	u.Host = p.Addr()
	return u.String()
}

func hostPort(address string) string {
	if !strings.Contains(address, "://") {
		return address
	}
	u, err := url.Parse(address)
	if err != nil {
		return address // dialling it will say what is wrong
	}
	return u.Host
}

// CutAll cuts all present connections: the client sees a reset, the server
// the end of the stream. What was forwarded before, the server still reads.
// New connections are served.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
	}
}

// Refuse resets new connections as soon as they are made; present ones stay.
func (p *Proxy) Refuse() { p.change(func() { p.refuse = true }) }

// Stall holds all bytes back, in both directions, and the end of a stream too:
// a side does not learn that the other has gone. Nothing is lost: Resume lets
// them pass.
func (p *Proxy) Stall() { p.change(func() { p.stalled = true }) }

// Freeze makes the present connections half-open: they carry nothing any more, in
// either direction, and no side learns that the other has gone, as when a host or
// the path to it vanishes. New connections are served. Resume does not bring the
// frozen ones back.
func (p *Proxy) Freeze() {
	p.change(func() {
		for l := range p.links {
			l.frozen = true
		}
	})
}

// Delay holds back each piece of a reply for d, from now on; 0 ends it, and Resume
// does not.
func (p *Proxy) Delay(d time.Duration) { p.change(func() { p.delay = d }) }

// DropReplies swallows all that servers send from now on. Clients see silence.
func (p *Proxy) DropReplies() { p.DropRepliesAfter(0) }

// DropRepliesAfter lets n more bytes of replies pass on each connection, then
// swallows the rest.
func (p *Proxy) DropRepliesAfter(n int) {
	p.change(func() {
		p.allow = n
		for l := range p.links {
			l.allow = n
		}
	})
}

// Resume ends Refuse, Stall and DropReplies. A connection that has lost a part
// of its replies is cut, since no network delivers the rest of such a stream.
func (p *Proxy) Resume() {
	p.change(func() {
		p.refuse, p.stalled, p.allow = false, false, -1
		for l := range p.links {
			l.allow = -1
			if l.lossy {
				l.cut()
			}
		}
	})
}

// OnClientBytes has hook decide on each piece of bytes that a client sends; nil
// takes it away, and Resume does not. A piece is what one read has returned:
// for a message shorter than a packet, what the client wrote in one go. The
// hook may be called for several connections at once and must not keep the
// slice. LoseReply expects a client that waits for its reply before it sends
// again: the reply to something sent earlier would be taken for it.
func (p *Proxy) OnClientBytes(hook func([]byte) Action) { p.change(func() { p.hook = hook }) }

// Retarget forwards new connections to another server, as a fail-over does.
// Present ones stay where they are: see CutAll.
func (p *Proxy) Retarget(address string) { p.change(func() { p.target = hostPort(address) }) }

// Connections is how many clients are connected.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

func (p *Proxy) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return // closed: nothing else makes a loopback listener fail
		}
		client := conn.(*net.TCPConn)
		p.mu.Lock()
		refuse, target := p.refuse || p.closed, p.target
		p.mu.Unlock()
		if refuse {
			reset(client)
			continue
		}
		p.running.Go(func() { p.serve(client, target) })
	}
}

func (p *Proxy) close() {
	p.listener.Close()
	p.change(func() { p.closed = true })
	p.CutAll()
	p.running.Wait()
}

// reset closes a connection so that the peer sees an error, not an end.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}
