package rabbitmq

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// ConnectionConfig says how to reach a server. Only URL is required. It prints
// without its password.
type ConnectionConfig struct {
	// URL is amqp://user:password@host:port/vhost, or amqps for TLS. What is left out
	// is guest:guest, port 5672 (5671) and the virtual host "/", which in a URL is
	// written /%2f, or as nothing at all.
	URL string

	// TLS is used with amqps; its ServerName defaults to the URL's host. Defaults
	// to the system's roots and TLS 1.2 or newer. It stays the caller's.
	TLS *tls.Config

	// SASL takes the place of the URL's user and password, with
	// amqp091.ExternalAuth for a client certificate, for example.
	SASL []amqp.Authentication

	// Name is shown for the connection in RabbitMQ's own lists and logs.
	// Defaults to "postbus".
	Name string

	// ConnectTimeout bounds the making of a connection, handshakes included.
	// Defaults to 5 s.
	ConnectTimeout time.Duration

	// Heartbeat is how often both sides say that they are there; a server that has
	// been silent for three of them has gone. Defaults to 10 s, at least 1 s.
	Heartbeat time.Duration
}

const (
	defaultConnectTimeout = 5 * time.Second
	defaultHeartbeat      = 10 * time.Second
	defaultName           = "postbus"
	redacted              = "xxxxx"
)

// String tells the configuration without its secrets.
func (c ConnectionConfig) String() string {
	return fmt.Sprintf("{URL:%s TLS:%t SASL:%d Name:%s ConnectTimeout:%s Heartbeat:%s}",
		redact(c.URL), c.TLS != nil, len(c.SASL), c.Name, c.ConnectTimeout, c.Heartbeat)
}

// GoString is String: %#v has no secrets either.
func (c ConnectionConfig) GoString() string { return "rabbitmq.ConnectionConfig" + c.String() }

// LogValue is String, for slog.
func (c ConnectionConfig) LogValue() slog.Value { return slog.StringValue(c.String()) }

// redact takes the password out of a URL, and shows nothing of one that cannot
// be taken apart: its password could be anywhere.
func redact(address string) string {
	if address == "" {
		return ""
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return redacted
	}
	if _, has := u.User.Password(); has {
		u.User = url.UserPassword(u.User.Username(), redacted)
	}
	u.RawQuery = "" // may name a key file, or hold anything
	return u.String()
}

// An endpoint is a ConnectionConfig that was found usable. It keeps its secrets
// in a function, where no %+v finds them.
type endpoint struct {
	where string // user@host:port/vhost, for texts
	dial  func(ctx context.Context) (*wire, amqp.Config, error)
	limit time.Duration
}

func (c ConnectionConfig) endpoint() (*endpoint, []error) {
	var faults []error
	fault := func(field, format string, args ...any) {
		faults = append(faults, fmt.Errorf("ConnectionConfig."+field+" "+format, args...))
	}
	uri, err := amqp.ParseURI(c.URL)
	switch {
	case c.URL == "":
		fault("URL", "is empty: give amqp://user:password@host:5672/vhost")
	case err != nil:
		// The error would quote the URL.
		fault("URL", "is no AMQP URL: give amqp://user:password@host:5672/vhost (amqps for TLS), "+
			"with the special characters of a password percent-encoded")
	case uri.Scheme == "amqp" && c.TLS != nil:
		fault("TLS", "is set, but the URL begins with amqp: nothing would be encrypted; write amqps, or leave TLS out")
	}
	if c.ConnectTimeout < 0 {
		fault("ConnectTimeout", "is %s: give a positive duration, or 0 for %s", c.ConnectTimeout, defaultConnectTimeout)
	}
	if c.Heartbeat != 0 && c.Heartbeat < time.Second {
		fault("Heartbeat", "is %s: a server that hangs would never be found out; give at least 1s, or 0 for %s", c.Heartbeat, defaultHeartbeat)
	}
	for i, a := range c.SASL {
		if a == nil {
			fault("SASL", "has nothing at index %d", i)
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = defaultConnectTimeout
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	if c.Name == "" {
		c.Name = defaultName
	}
	address := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	config := amqp.Config{Vhost: uri.Vhost, Heartbeat: c.Heartbeat, FrameSize: frameSize, Locale: "en_US", SASL: c.SASL}
	user := uri.Username
	if len(c.SASL) == 0 {
		config.SASL = []amqp.Authentication{uri.PlainAuth()}
	} else {
		user = c.SASL[0].Mechanism()
	}
	var encryption *tls.Config
	if uri.Scheme == "amqps" {
		encryption = tlsConfig(c.TLS, uri.Host)
	}
	name := c.Name
	return &endpoint{
		where: user + "@" + address + "/" + strings.TrimPrefix(uri.Vhost, "/"),
		limit: c.ConnectTimeout,
		dial: func(ctx context.Context) (*wire, amqp.Config, error) {
			config := config
			config.Properties = amqp.NewConnectionProperties() // a fresh one: amqp091-go writes into it
			config.Properties["connection_name"] = name
			config.Properties["product"] = defaultName
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err != nil {
				return nil, config, err
			}
			if encryption != nil {
				secured := tls.Client(conn, encryption)
				if err := secured.HandshakeContext(ctx); err != nil {
					conn.Close()
					return nil, config, fmt.Errorf("TLS: %w", err)
				}
				conn = secured
			}
			return newWire(conn), config, nil
		},
	}, nil
}

// frameSize is RabbitMQ's own default frame_max; the server may ask for less.
const frameSize = 128 << 10

func tlsConfig(given *tls.Config, host string) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if given != nil {
		config = given.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = host
	}
	return config
}

// whyNot puts into one sentence why a connection could not be made.
func (e *endpoint) whyNot(err error) error {
	var refusal *amqp.Error
	hint := "is RabbitMQ running there?"
	switch {
	case errors.As(err, &refusal) && refusal.Code == amqp.AccessRefused:
		hint = "look at user and password"
	case errors.As(err, &refusal) && refusal.Code == amqp.NotAllowed:
		hint = "look at the virtual host, and at this user's rights on it"
	case errors.As(err, &refusal):
		hint = "look at the server's log"
	case errors.Is(err, context.DeadlineExceeded):
		hint = "nothing answers there in time: look at address, port and firewall"
	case strings.HasPrefix(err.Error(), "TLS:"):
		hint = "look at the certificates, and at the port: 5671 is the usual one for TLS"
	}
	return fmt.Errorf("connect to RabbitMQ as %s: %w; %s", e.where, tidy(err), hint)
}

// tidy makes the text of an amqp091-go error readable, and keeps the error.
func tidy(err error) error {
	var refusal *amqp.Error
	if errors.As(err, &refusal) {
		return &serverError{refusal}
	}
	return err
}

// serverError shows code and reason of an AMQP error, as the server's log does.
type serverError struct{ amqp *amqp.Error }

func (e *serverError) Error() string { return fmt.Sprintf("%d %s", e.amqp.Code, e.amqp.Reason) }
func (e *serverError) Unwrap() error { return e.amqp }
