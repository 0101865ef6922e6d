package kafka

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// limits are the topics' max.message.bytes as a client knows them: it takes
// each when it first hears of the topic, for good.
type limits struct {
	mu sync.Mutex
	of map[string]int
}

// set gives a topic's limit. It returns false if the client has another one.
func (l *limits) set(topic string, bytes int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have, ok := l.of[topic]; ok {
		return have == bytes
	}
	if l.of == nil {
		l.of = make(map[string]int)
	}
	l.of[topic] = bytes
	return true
}

// ofBatch is for kgo.ProducerBatchMaxBytesFn. franz-go counts at least one byte
// for the length of a batch, Kafka none: what franz-go takes is never over
// max.message.bytes.
func (l *limits) ofBatch(topic string) int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes, ok := l.of[topic]; ok {
		return int32(bytes) + 1
	}
	return defaultMaxBytes
}

// overhead is how many bytes franz-go counts beyond batchBytes, at most.
const overhead = 3

// line is what a client's connections tell.
type line struct {
	wrote atomic.Bool // a Produce request has gone out
	err   atomic.Pointer[error]
}

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (l *line) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil {
		l.err.Store(&err)
	}
}

// OnBrokerWrite implements kgo.HookBrokerWrite.
func (l *line) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, bytes int, _, _ time.Duration, _ error) {
	const produce = 0
	if key == produce && bytes > 0 {
		l.wrote.Store(true)
	}
}

// trouble is why a connection could not be made, the last time that happened:
// what a person on call wants to know if nothing can be sent.
func (l *line) trouble() error {
	if err := l.err.Load(); err != nil {
		return *err
	}
	return nil
}
