package pgserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// From the message formats in Postgres' documentation of its protocol.
const (
	protocol3  = 196608   // 3.0
	sslRequest = 80877103 // 1234.5679
)

const pingTimeout = 3 * time.Second

// Ping logs in without a password and TLS, and returns nil if the server then
// is ready for a query.
func Ping(addr, user, database string) error {
	conn, err := dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()

	params := "user\x00" + user + "\x00database\x00" + database + "\x00\x00"
	packet := binary.BigEndian.AppendUint32(nil, uint32(8+len(params)))
	packet = binary.BigEndian.AppendUint32(packet, protocol3)
	if _, err := conn.Write(append(packet, params...)); err != nil {
		return fmt.Errorf("log in to %s: %w", addr, err)
	}
	for {
		kind, body, err := readMessage(conn)
		if err != nil {
			return fmt.Errorf("log in to %s: %w", addr, err)
		}
		switch {
		case kind == 'Z': // ready for query
			_, err := conn.Write([]byte{'X', 0, 0, 0, 4}) // terminate, or the server's log complains
			return err
		case kind == 'E':
			return fmt.Errorf("log in to %s: the server says: %s", addr, errorText(body))
		case kind == 'R' && len(body) >= 4 && binary.BigEndian.Uint32(body) != 0:
			return fmt.Errorf("log in to %s: it asks for a password", addr)
		}
	}
}

// Speaks asks whether a Postgres or a PgBouncer listens there at all, without
// logging in: for an address of somebody else's, with a password and TLS.
func Speaks(addr string) error {
	conn, err := dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	packet := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, sslRequest)
	if _, err := conn.Write(packet); err != nil {
		return fmt.Errorf("ask %s whether it is Postgres: %w", addr, err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return fmt.Errorf("ask %s whether it is Postgres: %w", addr, err)
	}
	if answer[0] != 'S' && answer[0] != 'N' {
		return fmt.Errorf("ask %s whether it is Postgres: it answered %q", addr, answer[0])
	}
	return nil
}

func dial(addr string) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", addr, pingTimeout)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(pingTimeout))
}

func readMessage(r io.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < 4 || n > 1<<16 {
		return 0, nil, errors.New("this is not Postgres' protocol")
	}
	body = make([]byte, n-4)
	_, err = io.ReadFull(r, body)
	return head[0], body, err
}

// errorText takes the message (field M) out of an ErrorResponse.
func errorText(body []byte) string {
	for field := range strings.SplitSeq(string(body), "\x00") {
		if text, ok := strings.CutPrefix(field, "M"); ok {
			return text
		}
	}
	return "no message"
}
