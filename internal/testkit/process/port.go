package process

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// FreePort finds a loopback port that nobody listens on. It stays below
// Linux's range for outgoing connections (32768 and up): there, the source
// port of any connection could take the place of a server that restarts.
func FreePort() (int, error) {
	const low, high, tries = 20000, 32000, 200
	var last error
	for range tries {
		port := low + rand.IntN(high-low)
		if last = PortFree(port); last == nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port on 127.0.0.1 between %d and %d: %w", low, high, last)
}

// PortFree returns nil if a server could listen on the loopback port now.
func PortFree(port int) error {
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return l.Close()
}
