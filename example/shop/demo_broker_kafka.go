package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/handlers"
)

func (b *kafkaBroker) published(ctx context.Context, topics []string) (sum int64, err error) {
	ends, err := b.ends(ctx, topics)
	ends.Each(func(end kadm.ListedOffset) { sum += end.Offset })
	return sum, err
}

// ends are the offsets after the last record of each partition.
func (b *kafkaBroker) ends(ctx context.Context, topics []string) (kadm.ListedOffsets, error) {
	ends, err := b.admin.ListEndOffsets(ctx, topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("read how far the topics reach: %w", err)
	}
	return ends, nil
}

func (b *kafkaBroker) again(ctx context.Context, topic string) (event string, err error) {
	var first *kgo.Record
	err = b.read(ctx, []string{topic}, func(r *kgo.Record) error {
		if first == nil {
			first = r
		}
		return nil
	})
	if err == nil && first == nil {
		err = errors.New("it is empty")
	}
	if err != nil {
		return "", fmt.Errorf("read the first record of topic %s: %w", topic, err)
	}
	e, err := events.Decode(first.Value)
	if err != nil {
		return "", fmt.Errorf("read the first record of topic %s: %w", topic, err)
	}
	copied := &kgo.Record{Topic: topic, Key: first.Key, Value: first.Value, Headers: first.Headers}
	if err := b.client.ProduceSync(ctx, copied).FirstErr(); err != nil {
		return "", fmt.Errorf("add a record to topic %s: %w", topic, err)
	}
	return e.EventID.String(), nil
}

func (b *kafkaBroker) drained(ctx context.Context, topics []string) (bool, error) {
	ends, err := b.ends(ctx, topics)
	if err != nil {
		return false, err
	}
	committed, err := b.admin.FetchOffsets(ctx, b.group)
	if err != nil {
		return false, err
	}
	drained := true
	ends.Each(func(end kadm.ListedOffset) {
		at, _ := committed.Lookup(end.Topic, end.Partition)
		if end.Offset > 0 && at.At < end.Offset {
			drained = false
		}
	})
	return drained, nil
}

func (b *kafkaBroker) readBack(ctx context.Context, topics []string, found func(finding) error) error {
	return b.read(ctx, topics, func(r *kgo.Record) error {
		f := finding{topic: r.Topic, entry: fmt.Sprintf("%d/%d", r.Partition, r.Offset), payload: r.Value}
		for _, h := range r.Headers {
			if h.Key == handlers.HeaderPoisonHandler {
				f.handler = string(h.Value)
			}
		}
		return found(f)
	})
}

// read reads what the topics hold now, without a group.
func (b *kafkaBroker) read(ctx context.Context, topics []string, each func(*kgo.Record) error) error {
	ends, err := b.ends(ctx, topics)
	if err != nil {
		return err
	}
	from, left := map[string]map[int32]kgo.Offset{}, int64(0)
	ends.Each(func(end kadm.ListedOffset) {
		if from[end.Topic] == nil {
			from[end.Topic] = map[int32]kgo.Offset{}
		}
		from[end.Topic][end.Partition] = kgo.NewOffset().AtStart()
		left += end.Offset
	})
	client, err := kgo.NewClient(kgo.SeedBrokers(b.cluster.Brokers...), kgo.ConsumePartitions(from))
	if err != nil {
		return err
	}
	defer client.Close()
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		var failed error
		fetches.EachRecord(func(r *kgo.Record) {
			end, _ := ends.Lookup(r.Topic, r.Partition)
			if failed != nil || r.Offset >= end.Offset {
				return
			}
			left--
			failed = each(r)
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}

func (b *kafkaBroker) remove(ctx context.Context, topics []string) error {
	deleted, err := b.admin.DeleteTopics(ctx, topics...)
	if err == nil {
		err = deleted.Error()
	}
	groups, groupErr := b.admin.DeleteGroups(ctx, b.group)
	if groupErr == nil {
		groupErr = groups.Error()
	}
	return errors.Join(err, groupErr)
}

func (b *kafkaBroker) close() { b.client.Close() }
