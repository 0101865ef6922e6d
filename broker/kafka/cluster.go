package kafka

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
)

// Cluster says where Kafka is and who we are there. Only Brokers is required.
// It prints itself without secrets.
type Cluster struct {
	// Brokers are some of the cluster's brokers, as host:port; the others are
	// found through them.
	Brokers []string

	// TLS is the configuration of the connections; nil means none, plain text.
	TLS *tls.Config

	// SASL says who we are, for example
	// scram.Auth{User: user, Pass: password}.AsSha512Mechanism(); nil means nobody.
	// PLAIN sends the password as it is: never without TLS.
	SASL sasl.Mechanism

	// ClientID names this program in the brokers' logs, quotas and metrics.
	// Defaults to "postbus".
	ClientID string

	// Options of franz-go, for whatever has no field here: a dialer, hooks, a
	// logger, the linger time, the compression. They may not take away what this
	// package promises: see NewPublisher and NewSubscriber for what is refused.
	Options []kgo.Opt
}

// String leaves out whatever may be a secret.
func (c Cluster) String() string {
	encryption, identity := "none", "none"
	if c.TLS != nil {
		encryption = "on"
	}
	if c.SASL != nil {
		identity = c.SASL.Name()
	}
	return fmt.Sprintf("kafka.Cluster{Brokers: %s, TLS: %s, SASL: %s, ClientID: %q, Options: %d}",
		strings.Join(c.Brokers, ","), encryption, identity, c.ClientID, len(c.Options))
}

// GoString is String: %#v shows no secrets either.
func (c Cluster) GoString() string { return c.String() }

// LogValue is String, for slog.
func (c Cluster) LogValue() slog.Value { return slog.StringValue(c.String()) }

const (
	defaultClientID = "postbus"

	// callTimeout bounds each call that is not about messages: what a topic's
	// settings are, a group's offsets.
	callTimeout = 10 * time.Second
)

func (c Cluster) faults(config string) (faults []error) {
	if len(c.Brokers) == 0 {
		faults = append(faults, fmt.Errorf(`%s.Cluster.Brokers is empty: name one or more, such as "kafka-1:9092"`, config))
	}
	for i, b := range c.Brokers {
		if b == "" || strings.ContainsAny(b, "/@ ,") { // it may be a URL with a password: not shown
			faults = append(faults, fmt.Errorf("%s.Cluster.Brokers[%d] is no address: give host:port, one per entry", config, i))
		}
	}
	return faults
}

// options are the caller's, over defaults that suit a relay and a router: a
// leader that has moved is found within a second.
func (c Cluster) options(defaults ...kgo.Opt) []kgo.Opt {
	id := c.ClientID
	if id == "" {
		id = defaultClientID
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.ClientID(id),
		kgo.DisableClientMetrics(),
		kgo.DialTimeout(5 * time.Second),
		kgo.MetadataMinAge(250 * time.Millisecond),
		kgo.RetryBackoffFn(pause),
	}
	if c.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(c.TLS))
	}
	if c.SASL != nil {
		opts = append(opts, kgo.SASL(c.SASL))
	}
	return append(append(opts, defaults...), c.Options...)
}

// pause is what franz-go waits after the nth failure in a row.
func pause(n int) time.Duration {
	const first, most = 50 * time.Millisecond, time.Second
	d := min(first<<min(max(n-1, 0), 10), most)
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// making is held while a client is made: franz-go tidies up the list of compressions in
// place, and clients that share an option share that list.
var making sync.Mutex

func newClient(opts ...kgo.Opt) (*kgo.Client, error) {
	making.Lock()
	defer making.Unlock()
	return kgo.NewClient(opts...)
}

// examine makes a client, lets look at its options, and closes it: it connects
// to nothing.
func examine(opts []kgo.Opt, look func(*kgo.Client) []error) []error {
	client, err := newClient(opts...)
	if err != nil {
		return []error{fmt.Errorf("Cluster: franz-go refuses the options: %w", err)}
	}
	defer client.Close()
	return look(client)
}

// set says whether an option of the on and off kind is on.
func set(client *kgo.Client, option any) bool {
	on, _ := client.OptValue(option).(bool)
	return on
}

func invalidConfig(constructor string, faults []error) error {
	return fmt.Errorf("kafka.%s: %w: %w", constructor, ErrInvalidConfig, errors.Join(faults...))
}
