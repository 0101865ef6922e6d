package testkit

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// link is one client's connection through a Proxy, whose mu guards the fields
// below.
type link struct {
	proxy          *Proxy
	client, server *net.TCPConn

	allow    int  // reply bytes that still pass; -1: all
	lossy    bool // replies have been swallowed
	loseNext bool // cut at the next reply
	dead     bool // cut
	frozen   bool // carries nothing any more
}

var errCut = errors.New("the proxy has cut the connection")

func (p *Proxy) serve(client *net.TCPConn, target string) {
	conn, err := net.DialTimeout("tcp", target, connectTimeout)
	if err != nil {
		reset(client) // no server: the client finds out as it would without us
		return
	}
	l := &link{proxy: p, client: client, server: conn.(*net.TCPConn)}
	p.mu.Lock()
	l.allow = p.allow
	p.links[l] = struct{}{}
	if p.closed {
		l.cut()
	}
	p.mu.Unlock()

	var both sync.WaitGroup
	both.Go(func() { l.pump(client, l.server, l.toServer) })
	both.Go(func() { l.pump(l.server, client, l.toClient) })
	both.Wait()

	client.Close()
	l.server.Close()
	p.change(func() { delete(p.links, l) })
}

// cut ends the link; the caller holds the proxy's mu.
func (l *link) cut() {
	l.dead = true
	reset(l.client)
	l.server.Close()
	l.proxy.changed.Broadcast()
}

// pump reads from one side and hands each piece to pass. At the end of the
// stream it ends the other side's stream too, and the other pump goes on.
func (l *link) pump(from, to *net.TCPConn, pass func([]byte) error) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if passErr := pass(buffer[:n]); passErr != nil {
				err = passErr
			}
		}
		if err == nil {
			continue
		}
		l.proxy.mu.Lock()
		if errors.Is(err, io.EOF) {
			err = l.wait() // a stalled network hides that one side has gone
		}
		if err != nil {
			l.cut()
		}
		l.proxy.mu.Unlock()
		if err == nil {
			to.CloseWrite()
		}
		return
	}
}

func (l *link) toServer(b []byte) error {
	p := l.proxy
	p.mu.Lock()
	hook := p.hook
	p.mu.Unlock()
	action := Forward
	if hook != nil {
		action = hook(b)
	}
	if action == Cut {
		return errCut
	}
	p.mu.Lock()
	if action == LoseReply {
		l.loseNext = true // before the bytes go out: the reply may be quick
	}
	err := l.wait()
	p.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = l.server.Write(b)
	return err
}

func (l *link) toClient(b []byte) error {
	p := l.proxy
	p.mu.Lock()
	if d := p.delay; d > 0 {
		p.mu.Unlock()
		<-time.After(d)
		p.mu.Lock()
	}
	err := l.wait()
	if l.loseNext {
		err = errCut
	}
	if l.allow >= 0 {
		pass := min(l.allow, len(b))
		l.lossy = l.lossy || pass < len(b)
		l.allow -= pass
		b = b[:pass]
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = l.client.Write(b)
	return err
}

// wait returns once the proxy lets bytes pass; the caller holds its mu.
func (l *link) wait() error {
	for (l.proxy.stalled || l.frozen) && !l.dead {
		l.proxy.changed.Wait()
	}
	if l.dead {
		return errCut
	}
	return nil
}
