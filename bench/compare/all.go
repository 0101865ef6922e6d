// Package compare holds the comparisons, each in a file of its own.
package compare

import "github.com/postbus/postbus/bench/harness"

// All comparisons, in the order in which they run.
func All() []harness.Comparison {
	return []harness.Comparison{
		drainNull,
		drainRTT,
		drainRedis,
		appendBatch,
		appendTx,
		wake,
		longTx,
		dispatch,
		memory,
		fanout,
		durable,
		oldSnapshot,
		retention,
	}
}

// rounds of every contest whose ratio is near 1.
const rounds = 7
