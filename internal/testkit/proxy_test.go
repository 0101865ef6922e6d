package testkit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// echoServer answers every byte with itself and counts what it has received.
func echoServer(t *testing.T) (addr string, received *output) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	received = &output{}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(io.MultiWriter(received, conn), conn)
			}()
		}
	}()
	return listener.Addr().String(), received
}

func dialProxy(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("read %q, error %v; want %q", got[:n], err, want)
	}
}

// expectCut waits for the end of the connection, and that nothing comes before it.
func expectCut(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := conn.Read(make([]byte, 100))
	if n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, error %v; want a connection that is cut", n, err)
	}
}

// expectSilence gives a fault the time to show itself.
func expectSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 100)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, error %v; want silence", n, err)
	}
}

func TestProxyForwardsToTheEnd(t *testing.T) {
	t.Parallel()
	addr, _ := echoServer(t)
	conn := dialProxy(t, NewProxy(t, addr))
	big := bytes.Repeat([]byte("0123456789"), 50_000)
	go func() {
		conn.Write(big)
		conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes of %d came back, error %v", len(got), len(big), err)
	}
}

func TestProxyCutsAndRefuses(t *testing.T) {
	t.Parallel()
	addr, _ := echoServer(t)
	p := NewProxy(t, addr)
	old := dialProxy(t, p)
	send(t, old, "a")
	expect(t, old, "a")

	p.Refuse()
	if refused, err := net.Dial("tcp", p.Addr()); err == nil { // the reset may be quicker
		defer refused.Close()
		expectCut(t, refused)
	}
	send(t, old, "b")
	expect(t, old, "b")

	p.CutAll()
	expectCut(t, old)
	Eventually(t, time.Minute, func() bool { return p.Connections() == 0 }, "all connections are gone")
	p.Resume()
	fresh := dialProxy(t, p)
	send(t, fresh, "c")
	expect(t, fresh, "c")
}

func TestProxyStalls(t *testing.T) {
	t.Parallel()
	addr, received := echoServer(t)
	p := NewProxy(t, addr)
	conn := dialProxy(t, p)
	send(t, conn, "a")
	expect(t, conn, "a")
	p.Stall()
	send(t, conn, "b")
	expectSilence(t, conn)
	if received.String() != "a" {
		t.Errorf("the server got %q through a stalled proxy", received)
	}
	conn.(*net.TCPConn).CloseWrite()
	expectSilence(t, conn)
	p.Resume()
	expect(t, conn, "b")
	expectCut(t, conn)
}

func TestProxyDropsReplies(t *testing.T) {
	t.Parallel()
	addr, received := echoServer(t)
	p := NewProxy(t, addr)
	conn, untouched := dialProxy(t, p), dialProxy(t, p)
	send(t, untouched, "x")
	expect(t, untouched, "x")

	p.DropRepliesAfter(2)
	send(t, conn, "abc")
	expect(t, conn, "ab")
	expectSilence(t, conn)
	if received.String() != "xabc" {
		t.Errorf("the server got %q, want all that was sent", received)
	}
	p.Resume()
	expectCut(t, conn)
	send(t, untouched, "y")
	expect(t, untouched, "y")
}

func TestProxyHookDecides(t *testing.T) {
	t.Parallel()
	addr, received := echoServer(t)
	p := NewProxy(t, addr)
	p.OnClientBytes(func(b []byte) Action {
		switch {
		case bytes.Contains(b, []byte("lose")):
			return LoseReply
		case bytes.Contains(b, []byte("cut")):
			return Cut
		}
		return Forward
	})
	for text, reaches := range map[string]bool{"lose": true, "cut": false} {
		conn := dialProxy(t, p)
		send(t, conn, "ok")
		expect(t, conn, "ok")
		send(t, conn, text)
		expectCut(t, conn)
		if got := bytes.Contains([]byte(received.String()), []byte(text)); got != reaches {
			t.Errorf("%s: the server has got it: %v, want %v", text, got, reaches)
		}
	}
}

func TestProxyRetargets(t *testing.T) {
	t.Parallel()
	first, _ := echoServer(t)
	second, received := echoServer(t)
	p := NewProxy(t, first)
	p.Retarget(second)
	conn := dialProxy(t, p)
	send(t, conn, "a")
	expect(t, conn, "a")
	if received.String() != "a" {
		t.Errorf("the new target got %q", received)
	}
}

// A commit whose reply is lost is the fault that the proxy is for.
func TestProxyLosesTheReplyOfACommit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	schema := CreateSchema(t)
	direct := Postgres(t, PG15)
	if _, err := direct.Exec(ctx, "CREATE TABLE "+schema+".kept (id int)"); err != nil {
		t.Fatal(err)
	}
	p := NewProxy(t, URL(t, PG15))
	tx, err := Pool(t, p.URL()).Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "INSERT INTO "+schema+".kept VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	p.OnClientBytes(func(b []byte) Action {
		if bytes.Contains(b, []byte("commit")) {
			return LoseReply
		}
		return Forward
	})
	if err := tx.Commit(ctx); err == nil {
		t.Error("the commit whose reply was lost returned nil")
	}
	var n int
	if err := direct.QueryRow(ctx, "SELECT count(*) FROM "+schema+".kept").Scan(&n); err != nil || n != 1 {
		t.Errorf("%d rows, error %v; want 1: the server has committed", n, err)
	}
}

func TestProxyStandsBeforeRedis(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := NewProxy(t, URL(t, RedisServer))
	client := RedisAt(t, p.URL(), func(o *redis.Options) { o.MaxRetries = -1; o.ReadTimeout = time.Second })
	key := Prefix(t) + "count"
	p.OnClientBytes(func(b []byte) Action {
		if bytes.Contains(b, []byte("incr")) {
			return LoseReply
		}
		return Forward
	})
	if err := client.Incr(ctx, key).Err(); err == nil {
		t.Error("the INCR whose reply was lost returned nil")
	}
	p.OnClientBytes(nil)
	if got, err := client.Get(ctx, key).Int(); err != nil || got != 1 {
		t.Errorf("the counter is %d, error %v; want 1", got, err)
	}
}

func TestProxyFreezes(t *testing.T) {
	addr, received := echoServer(t)
	p := NewProxy(t, addr)
	conn := dialProxy(t, p)
	send(t, conn, "one")
	expect(t, conn, "one")
	p.Freeze()
	send(t, conn, "two")
	expectSilence(t, conn)
	if got := received.String(); got != "one" {
		t.Errorf("the server received %q through a frozen connection", got)
	}
	fresh := dialProxy(t, p)
	send(t, fresh, "three")
	expect(t, fresh, "three")
	p.Resume()
	expectSilence(t, conn)
}

func TestProxyDelays(t *testing.T) {
	addr, _ := echoServer(t)
	p := NewProxy(t, addr)
	conn := dialProxy(t, p)
	const late = 60 * time.Millisecond
	p.Delay(late)
	began := time.Now()
	send(t, conn, "one")
	expect(t, conn, "one")
	if took := time.Since(began); took < late {
		t.Errorf("the reply came after %s", took)
	}
	p.Delay(0)
	send(t, conn, "two")
	expect(t, conn, "two")
}
