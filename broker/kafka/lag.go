package kafka

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/outbox"
)

// Lag is how far a group is behind in one partition, whoever reads it.
type Lag struct {
	Topic     string
	Group     string
	Partition int32
	// Messages is how many records stand behind the committed offset: not handled
	// yet, or handled and not committed yet. Transaction markers and what compaction has removed count
	// too.
	Messages int64
	// Oldest is how long ago the first of them was written, or rather happened: it
	// goes by the record's timestamp. 0 if there is none.
	Oldest time.Duration
	// Committed is the offset that the group goes on from; -1 if it has none yet.
	// End is that of the record that will be written next.
	Committed, End int64
}

// Lag asks the brokers how far the group is behind, in all partitions of the
// topics that are subscribed to at present, by topic and partition. The oldest
// records themselves are read for it, one batch per partition that is behind. The
// error wraps outbox.ErrUnavailable when no broker answers; ErrClosed after Close.
func (s *Subscriber) Lag(ctx context.Context) ([]Lag, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	s.calls.Add(1)
	defer s.calls.Done()
	var topics []string
	for sub := range s.subs {
		topics = append(topics, sub.topic)
	}
	s.mu.Unlock()
	slices.Sort(topics)
	topics = slices.Compact(topics)
	if len(topics) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	lags, err := s.lags(ctx, topics)
	if err != nil {
		return nil, fmt.Errorf("ask how far group %q is behind: %w: %w", s.cfg.Group, outbox.ErrUnavailable, err)
	}
	return lags, nil
}

func (s *Subscriber) lags(ctx context.Context, topics []string) ([]Lag, error) {
	s.adminOnce.Do(func() { s.admin, s.adminErr = newClient(s.cfg.Cluster.options()...) })
	if s.adminErr != nil {
		return nil, s.adminErr
	}
	admin := kadm.NewClient(s.admin)
	committed, err := admin.FetchOffsetsForTopics(ctx, s.cfg.Group, topics...)
	if err != nil {
		return nil, err
	}
	starts, err := admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	if err := ends.Error(); err != nil {
		return nil, err
	}
	var lags []Lag
	behind := make(map[string]map[int32]kgo.Offset)
	ends.Each(func(end kadm.ListedOffset) {
		l := Lag{Topic: end.Topic, Group: s.cfg.Group, Partition: end.Partition, Committed: -1, End: end.Offset}
		var from int64
		if start, ok := starts.Lookup(end.Topic, end.Partition); ok {
			from = max(start.Offset, 0)
		}
		if o, ok := committed.Lookup(end.Topic, end.Partition); ok && o.At >= 0 {
			l.Committed = o.At
			from = max(from, o.At) // what retention has removed cannot be read any more
		}
		if l.Messages = max(end.Offset-from, 0); l.Messages > 0 {
			if behind[end.Topic] == nil {
				behind[end.Topic] = make(map[int32]kgo.Offset)
			}
			behind[end.Topic][end.Partition] = kgo.NewOffset().At(from)
		}
		lags = append(lags, l)
	})
	slices.SortFunc(lags, func(a, b Lag) int {
		if n := strings.Compare(a.Topic, b.Topic); n != 0 {
			return n
		}
		return int(a.Partition) - int(b.Partition)
	})
	return lags, s.date(ctx, lags, behind)
}

// date reads the oldest records that are behind.
func (s *Subscriber) date(ctx context.Context, lags []Lag, behind map[string]map[int32]kgo.Offset) error {
	open := 0
	for _, partitions := range behind {
		open += len(partitions)
	}
	if open == 0 {
		return nil
	}
	client, err := newClient(append(s.options(), kgo.ConsumePartitions(behind), kgo.FetchMaxPartitionBytes(1), kgo.FetchMaxWait(100*time.Millisecond))...)
	if err != nil {
		return err
	}
	defer client.Close()
	for open > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		fetches.EachPartition(func(f kgo.FetchTopicPartition) {
			if len(f.Records) == 0 || behind[f.Topic] == nil {
				return
			}
			if _, waits := behind[f.Topic][f.Partition]; !waits {
				return
			}
			delete(behind[f.Topic], f.Partition)
			open--
			for i := range lags {
				if lags[i].Topic == f.Topic && lags[i].Partition == f.Partition {
					lags[i].Oldest = max(time.Since(f.Records[0].Timestamp), 0)
				}
			}
		})
	}
	return nil
}
