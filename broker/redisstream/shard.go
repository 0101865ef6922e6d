package redisstream

import (
	"fmt"
	"strconv"

	"github.com/postbus/postbus/events"
)

// maxShards bounds the streams of one topic: each costs a subscriber a connection
// while it waits.
const maxShards = 256

// ShardStream is the name of one of a topic's streams where PublisherConfig.Shards
// and SubscriberConfig.Shards are set: "{order:3}" for shard 3 of "order", counted
// from 0. The braces are a hash tag: in a Redis Cluster a shard's stream and its
// lease are in one slot, and different shards in different ones.
func ShardStream(topic string, shard int) string {
	return "{" + topic + ":" + strconv.Itoa(shard) + "}"
}

// ShardOf is the shard of a partition key, out of shards: FNV-1a, 32 bits, of its
// bytes, modulo shards. Source: http://www.isthe.com/chongo/tech/comp/fnv/
func ShardOf(key string, shards int) int {
	h := uint32(2166136261)
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	return int(h % uint32(shards))
}

// shardStreams are the names of all.
func shardStreams(topic string, shards int) []string {
	names := make([]string, shards)
	for k := range names {
		names[k] = ShardStream(topic, k)
	}
	return names
}

func shardFaults(config string, shards int) []error {
	if shards < 0 || shards > maxShards {
		return []error{fmt.Errorf("%s.Shards is %d: give a number from 1 to %d, the same for all publishers and subscribers of a topic, or 0 for one plain stream",
			config, shards, maxShards)}
	}
	return nil
}

// shardedMessages are those of a call, each in the stream of its key's shard. One
// without a key goes by its id.
type shardedMessages struct {
	source
	streams []string
}

func (s shardedMessages) topic(i int) string { return s.streams[i] }

// sharded sorts src into the shards' streams.
func (p *Publisher) sharded(src source) source {
	streams := make([]string, src.len())
	var topic string
	var names []string
	for i := range streams {
		if t := src.topic(i); names == nil || t != topic {
			topic, names = t, p.shardNames(t)
		}
		key := shardKey(src, i)
		if key == "" {
			key = src.id(i)
		}
		streams[i] = names[ShardOf(key, p.shards)]
	}
	return shardedMessages{src, streams}
}

func (p *Publisher) shardNames(topic string) []string {
	if names, ok := p.names.Load(topic); ok {
		return names.([]string)
	}
	names, _ := p.names.LoadOrStore(topic, shardStreams(topic, p.shards))
	return names.([]string)
}

func shardKey(src source, i int) string {
	if w, ok := src.(watermillMessages); ok {
		if w.msgs[i] == nil {
			return ""
		}
		return w.msgs[i].Metadata[events.HeaderPartitionKey]
	}
	return src.key(i)
}
