package pgserver

import (
	"io"
	"net"
	"strings"
	"testing"
)

// answering is a listener that answers every connection with the same bytes.
func answering(t *testing.T, answer string) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn.Read(make([]byte, 1000))
				io.WriteString(conn, answer)
			}()
		}
	}()
	return listener.Addr().String()
}

func TestPingReadsTheServersAnswer(t *testing.T) {
	t.Parallel()
	const trusted = "R\x00\x00\x00\x08\x00\x00\x00\x00"
	for _, test := range []struct{ answer, want string }{
		{trusted + "S\x00\x00\x00\x09a\x00bc\x00" + "Z\x00\x00\x00\x05I", ""},
		{"R\x00\x00\x00\x08\x00\x00\x00\x05", "password"},
		{"E\x00\x00\x00\x19SFATAL\x00Mstarting up\x00\x00", "starting up"},
		{trusted, "EOF"},
		{"HTTP/1.1 400 Bad Request\r\n\r\n", "not Postgres' protocol"},
		{"", "EOF"},
	} {
		err := Ping(answering(t, test.answer), User, Database)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%q: %v", test.answer, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%q: got %v, want an error with %q", test.answer, err, test.want)
		}
	}
}

func TestSpeaksTellsPostgresFromOthers(t *testing.T) {
	t.Parallel()
	for answer, postgres := range map[string]bool{"N": true, "S": true, "-ERR": false, "": false} {
		if err := Speaks(answering(t, answer)); (err == nil) != postgres {
			t.Errorf("%q: got %v", answer, err)
		}
	}
}
