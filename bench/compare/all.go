// Package compare holds the comparisons, each in a file of its own.
package compare

import "github.com/postbus/postbus/bench/harness"

// All comparisons, in the order in which they run.
func All() []harness.Comparison {
	return []harness.Comparison{
		drainNull,
		drainRTT,
		drainTo(onRedis, harness.Plain),
		appendBatch,
		appendTx,
		wake,
		longTx,
		dispatch,
		memory,
		fanout,
		durable,

		publishTo(onKafka),
		publishTo(onRabbitMQ),
		publishTo(onSQS),
		publishTo(onRedis),
		drainTo(onKafka, harness.Brokers),
		drainTo(onRabbitMQ, harness.Brokers),
		drainTo(onSQS, harness.Brokers),
		consumeFrom(onKafka),
		consumeFrom(onRabbitMQ),
		consumeFrom(onSQS),
		consumeFrom(onRedis),

		oldSnapshot,
		retention,
	}
}

// rounds of every contest whose ratio is near 1.
const rounds = 7
