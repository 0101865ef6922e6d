package redisstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// ErrNoGroup: Topology.Check has found a stream or a group of it missing.
var ErrNoGroup = errors.New("it does not exist")

// A Topology is the streams a program needs, and who reads them. Subscribe
// creates its own stream and group, so that a topology is for what must be there
// before: groups that are to miss nothing although their consumers start later,
// and that Trim has to know. Declare creates what is missing, Check only looks;
// neither changes or removes anything that exists.
type Topology struct {
	Topics []Topic
}

// A Topic and the consumer groups that read it: Name is required.
type Topic struct {
	Name string

	// Shards is in how many streams it is divided: as PublisherConfig.Shards. 0 is
	// one stream of its name.
	Shards int

	// Groups are created with Start. One that exists keeps its place.
	Groups []string
	Start  Start
}

// streams are the names of the topic's streams.
func (t Topic) streams() []string {
	if t.Shards == 0 {
		return []string{t.Name}
	}
	return shardStreams(t.Name, t.Shards)
}

func (t Topology) faults(client redis.UniversalClient) []error {
	faults := clientFaults("Topology", client)
	fault := func(i int, format string, args ...any) {
		faults = append(faults, fmt.Errorf("Topology.Topics[%d] (%q)."+format, append([]any{i, t.Topics[i].Name}, args...)...))
	}
	for i, topic := range t.Topics {
		if topic.Name == "" {
			fault(i, "Name is empty: name the topic")
		}
		if topic.Shards < 0 || topic.Shards > maxShards {
			fault(i, "Shards is %d: give a number from 1 to %d, or 0 for one plain stream", topic.Shards, maxShards)
		}
		if slices.Contains(topic.Groups, "") {
			fault(i, "Groups has an empty name: name who reads")
		}
		if topic.Start != FromBeginning && topic.Start != FromNow {
			fault(i, "Start is %d: give FromBeginning or FromNow", topic.Start)
		}
	}
	return faults
}

// Declare creates the streams and groups that do not exist. The errors of all are
// joined: ErrInvalidConfig, or a *CommandError for each group that could not be created.
func (t Topology) Declare(ctx context.Context, client redis.UniversalClient) error {
	return t.each("declare", client, func(topic Topic, stream, group string) error {
		from := fromStart
		if topic.Start == FromNow {
			from = "$"
		}
		_, err := within(ctx, answerTimeout, func(ctx context.Context) (string, error) {
			return client.XGroupCreateMkStream(ctx, stream, group, from).Result()
		})
		if err != nil && !strings.HasPrefix(err.Error(), "BUSYGROUP") {
			return commandError(fmt.Sprintf("create group %q on stream %q", group, stream), err,
				"the key of that name is no stream: rename the topic or the key", "allow this ACL user the stream and the command XGROUP")
		}
		return nil
	})
}

// Check looks whether all is there. Each group that is not is an error that wraps
// ErrNoGroup; they are joined.
func (t Topology) Check(ctx context.Context, client redis.UniversalClient) error {
	return t.each("check", client, func(_ Topic, stream, group string) error {
		groups, err := within(ctx, answerTimeout, func(ctx context.Context) ([]redis.XInfoGroup, error) {
			return client.XInfoGroups(ctx, stream).Result()
		})
		if err != nil && !strings.Contains(err.Error(), "no such key") {
			return commandError(fmt.Sprintf("look for group %q on stream %q", group, stream), err,
				"the key of that name is no stream: rename the topic or the key", "allow this ACL user the stream and the command XINFO")
		}
		if !slices.ContainsFunc(groups, func(g redis.XInfoGroup) bool { return g.Name == group }) {
			return fmt.Errorf("group %q on stream %q: %w; create it by Topology.Declare, or correct its name", group, stream, ErrNoGroup)
		}
		return nil
	})
}

func (t Topology) each(what string, client redis.UniversalClient, f func(topic Topic, stream, group string) error) error {
	if faults := t.faults(client); len(faults) > 0 {
		return fmt.Errorf("%s the topology: %w: %w", what, ErrInvalidConfig, errors.Join(faults...))
	}
	var errs []error
	for _, topic := range t.Topics {
		for _, stream := range topic.streams() {
			for _, group := range topic.Groups {
				if err := f(topic, stream, group); err != nil {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// Describe is what Declare would create, a line for each topic.
func (t Topology) Describe() string {
	var b strings.Builder
	for _, topic := range t.Topics {
		b.WriteString("stream " + strconv.Quote(topic.Name))
		if topic.Shards > 0 {
			names := topic.streams()
			fmt.Fprintf(&b, " in %d shards, %q to %q", topic.Shards, names[0], names[len(names)-1])
		}
		for i, group := range topic.Groups {
			if i == 0 {
				b.WriteString(", read " + topic.Start.String() + " by")
			}
			b.WriteString(" " + strconv.Quote(group))
		}
		b.WriteString("\n")
	}
	return b.String()
}
