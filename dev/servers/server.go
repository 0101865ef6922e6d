package main

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/postbus/postbus/internal/testkit/process"
)

// server is one row of the table: a server and the ways to come by it.
type server struct {
	key      string  // names its folder, its record and its compose service
	title    string  // as a person calls it
	variable string  // environment variable that holds its address
	behind   *server // the server that it stands in front of; nil for most

	// answers returns nil if what the address names is up and speaks the
	// server's protocol. foreign says that it is not ours: we hold no password.
	answers func(address string, foreign bool) error

	// missing says what a person has to do before a local process can be
	// started, or nil. It changes nothing.
	missing func(u *upper) *lack

	// start starts the local process, in a folder that is empty at first. A
	// record of an earlier process holds the port to prefer.
	start func(l local) (record, *process.Process, error)
	stop  syscall.Signal // asks the local process to go

	composePort int                      // the port inside the container
	composeURL  func(addr string) string // the address, given host:port

	// composeKnows is the variable of compose.yaml by which a server is told its
	// port out here, for those that send it on to their clients; "" for most.
	composeKnows string
}

var servers = []*server{postgres15, postgres18, pgbouncer, redis, kafka, rabbitmq, elasticmq, moto}

// choose finds servers by their keys, and what they stand in front of; without a
// key, all.
func choose(keys []string) (chosen []*server, err error) {
	if len(keys) == 0 {
		return servers, nil
	}
	var known []string
	for _, s := range servers {
		known = append(known, s.key)
	}
	for _, key := range keys {
		i := slices.Index(known, key)
		if i < 0 {
			return nil, fmt.Errorf("there is no server %q: the servers are %s", key, strings.Join(known, ", "))
		}
		for s := servers[i]; s != nil; s = s.behind {
			if !slices.Contains(chosen, s) {
				chosen = append(chosen, s)
			}
		}
	}
	return chosen, nil
}

// hostPort is where an address in URL form points.
func hostPort(address, defaultPort string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Opaque != "" {
		// url.Parse repeats its input, which may hold a password.
		return "", fmt.Errorf("read the address: it is not a URL of the form scheme://host:port/name")
	}
	if u.Hostname() == "" {
		return "", fmt.Errorf("read the address: no host in it; write scheme://host:port/name")
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// withoutPassword is the address as it may be shown.
func withoutPassword(address string) string {
	if !strings.ContainsAny(address, "/@") {
		return address // host:port,host:port has no place for one
	}
	u, err := url.Parse(address)
	if err != nil || u.Opaque != "" {
		return "(not a URL)"
	}
	if q := u.Query(); q.Has("password") {
		q.Set("password", "xxxxx")
		u.RawQuery = q.Encode()
	}
	return u.Redacted()
}

// fromVariable is the address that the environment gives, if any.
func (s *server) fromVariable() string { return strings.TrimSpace(os.Getenv(s.variable)) }
