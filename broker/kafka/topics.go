package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// topicFacts is what a publisher has to know of a topic.
type topicFacts struct {
	maxBytes  int           // max.message.bytes: of a batch
	retention time.Duration // 0: for ever
	fault     string        // of its name; the rest is empty
	err       error         // the topic cannot be published to; the rest is empty
	until     time.Time     // then it is asked again
}

const (
	// defaultMaxBytes is Kafka's default for message.max.bytes: for a topic whose
	// settings we may not read.
	defaultMaxBytes = 1048588

	factsAge = time.Minute // a changed setting is noticed after this
	errorAge = time.Second // a missing topic may be created at any time
	// staleAge: settings that are known are used on while they cannot be read.
	staleAge = 10 * time.Second
)

// topics remembers the facts of topics. Safe for use by several goroutines.
type topics struct {
	admin func() (*kgo.Client, error)
	log   *slog.Logger

	mu     sync.RWMutex
	known  map[string]topicFacts
	warned map[string]bool // of a topic that loses events by its settings
}

func newTopics(admin func() (*kgo.Client, error), log *slog.Logger) *topics {
	return &topics{admin: admin, log: log, known: make(map[string]topicFacts), warned: make(map[string]bool)}
}

func (t *topics) get(topic string, now time.Time) (topicFacts, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	f, ok := t.known[topic]
	return f, ok && now.Before(f.until)
}

// forget has a topic asked for again.
func (t *topics) forget(topic string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known, topic)
}

// learn reads the settings of topics. An error means that the cluster did not
// answer; what it says of a topic is in its facts.
func (t *topics) learn(ctx context.Context, names []string) error {
	client, err := t.admin()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := describe(ctx, client, names)
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		return t.makeDo(names, now, err)
	}
	for _, r := range answer.Resources {
		switch err := kerr.ErrorForCode(r.ErrorCode); {
		case err == nil:
			f := factsOf(r.Configs)
			f.until = now.Add(factsAge)
			t.known[r.ResourceName] = f
			if compacts(r.Configs) && !t.warned[r.ResourceName] {
				t.warned[r.ResourceName] = true
				t.log.Warn("a topic is compacted: Kafka keeps only the last event of each key; set its cleanup.policy to delete", "topic", r.ResourceName)
			}
		case errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.InvalidTopicException):
			t.known[r.ResourceName] = topicFacts{err: err, until: now.Add(errorAge)}
		case errors.Is(err, kerr.TopicAuthorizationFailed):
			// We may still write to it; Kafka will say.
			t.known[r.ResourceName] = topicFacts{maxBytes: defaultMaxBytes, retention: unknownRetention, until: now.Add(factsAge)}
		default:
			if err := t.makeDo([]string{r.ResourceName}, now, err); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		if _, ok := t.known[name]; !ok {
			return fmt.Errorf("the answer says nothing of topic %q", name)
		}
	}
	return nil
}

func describe(ctx context.Context, client *kgo.Client, names []string) (*kmsg.DescribeConfigsResponse, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, name := range names {
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, name
		r.ConfigNames = []string{"max.message.bytes", "retention.ms", "cleanup.policy"}
		req.Resources = append(req.Resources, r)
	}
	return req.RequestWith(ctx, client)
}

// makeDo goes on with what is known of topics, if it is known of all.
func (t *topics) makeDo(names []string, now time.Time, err error) error {
	for _, name := range names {
		f, ok := t.known[name]
		if !ok || f.err != nil {
			return err
		}
		f.until = now.Add(staleAge)
		t.known[name] = f
	}
	return nil
}

func factsOf(configs []kmsg.DescribeConfigsResponseResourceConfig) topicFacts {
	f := topicFacts{maxBytes: defaultMaxBytes}
	for _, c := range configs {
		if c.Value == nil {
			continue
		}
		switch c.Name {
		case "max.message.bytes":
			if n, err := strconv.Atoi(*c.Value); err == nil {
				f.maxBytes = n
			}
		case "retention.ms":
			if n, err := strconv.ParseInt(*c.Value, 10, 64); err == nil && n > 0 && n < int64(1<<63-1)/int64(time.Millisecond) {
				f.retention = time.Duration(n) * time.Millisecond
			}
		}
	}
	return f
}

// compacts: "compact" alone or together with "delete".
func compacts(configs []kmsg.DescribeConfigsResponseResourceConfig) bool {
	for _, c := range configs {
		if c.Name == "cleanup.policy" && c.Value != nil {
			return strings.Contains(*c.Value, "compact")
		}
	}
	return false
}
