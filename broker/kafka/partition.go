package kafka

import (
	"math/rand/v2"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Hasher says which partition a key belongs to. All who write to a topic must
// agree: otherwise the events of one key are spread over partitions, and lose
// their order.
type Hasher int

const (
	// Murmur2 is that of Kafka's own Java client, librdkafka's
	// "murmur2_random" and franz-go.
	Murmur2 Hasher = iota
	// SaramaFNV1a is that of sarama and so of the stock Watermill publisher: for
	// topics that it has written to.
	SaramaFNV1a
)

func (h Hasher) String() string {
	switch h {
	case Murmur2:
		return "murmur2"
	case SaramaFNV1a:
		return "sarama's FNV-1a"
	}
	return "Hasher(" + strconv.Itoa(int(h)) + ")"
}

// partitioner sends a key to its partition, and messages without a key to one
// partition after the other.
type partitioner struct {
	keyed kgo.Partitioner
	chose func() // a partition was chosen for a record; nil if nobody needs to know
}

func newPartitioner(h Hasher, chose func()) *partitioner {
	var hash kgo.PartitionerHasher // nil: murmur2
	if h == SaramaFNV1a {
		hash = kgo.SaramaCompatHasher(fnv1a)
	}
	return &partitioner{keyed: kgo.StickyKeyPartitioner(hash), chose: chose}
}

// fnv1a is the 32 bit FNV-1a hash: http://www.isthe.com/chongo/tech/comp/fnv/
func fnv1a(b []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

// ForTopic implements kgo.Partitioner.
func (p *partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return &topicPartitioner{keyed: p.keyed.ForTopic(topic), next: rand.Uint32(), chose: p.chose}
}

// topicPartitioner is used by one goroutine at a time: franz-go sees to that.
type topicPartitioner struct {
	keyed kgo.TopicPartitioner
	next  uint32
	chose func()
}

// RequiresConsistency: a key stays with its partition even while that cannot be
// written to.
func (p *topicPartitioner) RequiresConsistency(r *kgo.Record) bool { return r.Key != nil }

// Partition implements kgo.TopicPartitioner.
func (p *topicPartitioner) Partition(r *kgo.Record, n int) int {
	if p.chose != nil {
		p.chose()
	}
	if r.Key != nil {
		return p.keyed.Partition(r, n)
	}
	p.next++
	return int(p.next % uint32(n))
}
