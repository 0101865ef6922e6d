package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/postbus/postbus/outbox"
)

var (
	// ErrNoTopic: Topology.Check has found a topic missing.
	ErrNoTopic = errors.New("it does not exist")

	// ErrDiffers: a topic exists and is not as the Topology says. Nothing was changed.
	ErrDiffers = errors.New("it exists with other settings")
)

// A Topology is the topics a program needs. Declare creates what is missing,
// Check only looks; neither changes or removes anything that exists.
type Topology struct {
	Topics []Topic
}

// A Topic of events: Name and Partitions are required.
type Topic struct {
	Name string

	// Partitions is how many consumers of a group may share the work. Choose it with
	// room to grow: when partitions are added later, most keys move to another
	// one, and their events are out of order around that moment.
	Partitions int

	// Replicas of each partition. 0 means what the cluster does by default
	// (default.replication.factor).
	Replicas int

	// MinInSync is how many replicas must have an event before it is acknowledged
	// (min.insync.replicas). 0 means 2 for 3 replicas and more, else what the
	// cluster does by default.
	MinInSync int

	// Retention is how long an event is kept (retention.ms), by its own time: see
	// the package's documentation. 0 means what the cluster does by default, Forever never
	// to remove any.
	Retention time.Duration

	// MaxMessageBytes bounds a batch, and so an event (max.message.bytes). 0 means what the
	// cluster does by default.
	MaxMessageBytes int

	// Settings are others of Kafka's topic settings, such as "compression.type".
	Settings map[string]string

	// MayDropAllButLatest lets Settings ask for compaction, which keeps of each key
	// only the last event: a log of states, not of events. Off by default.
	MayDropAllButLatest bool
}

// Forever is the Retention of a topic from which nothing is removed.
const Forever time.Duration = -1

// settings are those that are asked for, by Kafka's names.
func (t Topic) settings() map[string]string {
	s := map[string]string{"cleanup.policy": "delete"}
	maps.Copy(s, t.Settings)
	switch {
	case t.Retention == Forever:
		s["retention.ms"] = "-1"
	case t.Retention > 0:
		s["retention.ms"] = strconv.FormatInt(t.Retention.Milliseconds(), 10)
	}
	if t.MaxMessageBytes > 0 {
		s["max.message.bytes"] = strconv.Itoa(t.MaxMessageBytes)
	}
	if n := t.minInSync(); n > 0 {
		s["min.insync.replicas"] = strconv.Itoa(n)
	}
	return s
}

func (t Topic) minInSync() int {
	if t.MinInSync == 0 && t.Replicas >= 3 {
		return 2
	}
	return t.MinInSync
}

// own are the settings that have a field.
var own = map[string]string{"retention.ms": "Retention", "max.message.bytes": "MaxMessageBytes", "min.insync.replicas": "MinInSync"}

func (t Topology) faults() (faults []error) {
	seen := make(map[string]bool)
	for i, topic := range t.Topics {
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Errorf("Topology.Topics[%d] (%q)."+format, append([]any{i, topic.Name}, args...)...))
		}
		if text := topicFault(topic.Name); text != "" {
			fault("Name: %s", text)
		} else if seen[topic.Name] {
			fault("Name is there twice: declare a topic once")
		}
		seen[topic.Name] = true
		if topic.Partitions < 1 {
			fault("Partitions is %d: give how many consumers may share the work, with room to grow, such as 12", topic.Partitions)
		}
		if topic.Replicas < 0 || topic.MinInSync < 0 || topic.MaxMessageBytes < 0 {
			fault("Replicas, MinInSync and MaxMessageBytes are %d, %d and %d: give positive numbers, or 0 for the cluster's", topic.Replicas,
				topic.MinInSync, topic.MaxMessageBytes)
		}
		if topic.Replicas > 0 && topic.MinInSync > topic.Replicas {
			fault("MinInSync is %d, more than the %d Replicas: give fewer, or nothing could be published", topic.MinInSync, topic.Replicas)
		}
		if topic.Retention < 0 && topic.Retention != Forever || topic.Retention > 0 && topic.Retention < time.Minute {
			fault("Retention is %s: give a minute at least, Forever, or 0 for the cluster's", topic.Retention)
		}
		for name, field := range own {
			if _, both := topic.Settings[name]; both {
				fault("Settings has %s: give %s instead", name, field)
			}
		}
		if strings.Contains(topic.Settings["cleanup.policy"], "compact") && !topic.MayDropAllButLatest {
			fault("Settings asks for compaction, which keeps of each key only the last event: " +
				"remove cleanup.policy, or set MayDropAllButLatest if that is what you want")
		}
	}
	return faults
}

// Declare creates the topics that do not exist, and checks those that do. The
// error wraps ErrDiffers, ErrInvalidConfig, or outbox.ErrUnavailable when no
// broker answers; all that is wrong is in its text.
func (t Topology) Declare(ctx context.Context, c Cluster) error {
	return t.compare(ctx, c, "declare", true)
}

// Check says what is missing or otherwise than it should be, and creates
// nothing. The error wraps ErrNoTopic, ErrDiffers, ErrInvalidConfig, or
// outbox.ErrUnavailable when no broker answers; all that is wrong is in its text.
func (t Topology) Check(ctx context.Context, c Cluster) error {
	return t.compare(ctx, c, "check", false)
}

func (t Topology) compare(ctx context.Context, c Cluster, what string, create bool) error {
	if faults := append(c.faults("Topology"), t.faults()...); len(faults) > 0 {
		return fmt.Errorf("%s the topology: %w: %w", what, ErrInvalidConfig, errors.Join(faults...))
	}
	if len(t.Topics) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*callTimeout)
	defer cancel()
	client, err := newClient(c.options()...)
	if err != nil {
		return fmt.Errorf("%s the topology: %w: %w", what, ErrInvalidConfig, err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	names := make([]string, len(t.Topics))
	for i, topic := range t.Topics {
		names[i] = topic.Name
	}
	found, err := admin.ListTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("%s the topology: %w: %w", what, outbox.ErrUnavailable, err)
	}
	var faults []error
	for _, topic := range t.Topics {
		if err := topic.compare(ctx, admin, found[topic.Name], create); err != nil {
			faults = append(faults, fmt.Errorf("%s topic %q: %w", what, topic.Name, err))
		}
	}
	return errors.Join(faults...)
}

func (t Topic) compare(ctx context.Context, admin *kadm.Client, found kadm.TopicDetail, create bool) error {
	switch {
	case found.Err == nil:
		return t.differences(ctx, admin, found)
	case !errors.Is(found.Err, kerr.UnknownTopicOrPartition):
		return found.Err
	case !create:
		return fmt.Errorf("%w: have it created, by Topology.Declare for example", ErrNoTopic)
	}
	settings := make(map[string]*string)
	for name, value := range t.settings() {
		settings[name] = &value
	}
	replicas := int16(-1)
	if t.Replicas > 0 {
		replicas = int16(t.Replicas)
	}
	_, err := admin.CreateTopic(ctx, int32(t.Partitions), replicas, settings, t.Name)
	if errors.Is(err, kerr.TopicAlreadyExists) { // somebody else was faster, perhaps with another topology
		return t.compareYoung(ctx, admin)
	}
	return err
}

// compareYoung compares a topic that exists, but that not every broker knows yet.
func (t Topic) compareYoung(ctx context.Context, admin *kadm.Client) error {
	for {
		found, err := admin.ListTopics(ctx, t.Name)
		if err != nil {
			return err
		}
		if d := found[t.Name]; d.Err == nil && len(d.Partitions) > 0 {
			return t.differences(ctx, admin, d)
		}
		again := time.NewTimer(50 * time.Millisecond)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return ctx.Err()
		}
	}
}

func (t Topic) differences(ctx context.Context, admin *kadm.Client, found kadm.TopicDetail) error {
	var differences []string
	differ := func(name string, is, want any) {
		differences = append(differences, fmt.Sprintf("%s is %v, not %v", name, is, want))
	}
	if n := len(found.Partitions); n != t.Partitions {
		differ("the number of partitions", n, t.Partitions)
	}
	if n := found.Partitions.NumReplicas(); t.Replicas > 0 && n != t.Replicas {
		differ("the number of replicas", n, t.Replicas)
	}
	configs, err := admin.DescribeTopicConfigs(ctx, t.Name)
	if err != nil {
		return err
	}
	is := make(map[string]string)
	for _, resource := range configs {
		for _, c := range resource.Configs {
			is[c.Key] = c.MaybeValue()
		}
	}
	want := t.settings()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if is[name] != want[name] {
			differ(name, is[name], want[name])
		}
	}
	if len(differences) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s; change the topic, or the Topology", ErrDiffers, strings.Join(differences, "; "))
}

// Describe prints what Declare would create, a line for each topic; or what is wrong.
func (t Topology) Describe() string {
	if faults := t.faults(); len(faults) > 0 {
		return "this topology cannot be declared:\n" + errors.Join(faults...).Error() + "\n"
	}
	var b strings.Builder
	for _, topic := range t.Topics {
		replicas := "as many replicas as the cluster's default"
		if topic.Replicas > 0 {
			replicas = fmt.Sprintf("%d replicas", topic.Replicas)
		}
		fmt.Fprintf(&b, "topic %q: %d partitions, %s", topic.Name, topic.Partitions, replicas)
		settings := topic.settings()
		for _, name := range slices.Sorted(maps.Keys(settings)) {
			fmt.Fprintf(&b, ", %s=%s", name, settings[name])
		}
		b.WriteByte('\n')
	}
	return b.String()
}
