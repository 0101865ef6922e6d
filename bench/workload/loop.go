package workload

import (
	"runtime"
	"slices"
	"time"
)

// chunk is how many calls Loop times at once: a millisecond's worth or less of what
// takes 200 ns, so that most chunks are not interrupted.
const chunk = 4000

// Loop calls f n times and gives the rate: the median over chunks of calls, since what
// takes nanoseconds is at the mercy of whatever else the machine does.
func Loop(n int, f func()) float64 {
	return LoopOf(n, func(n int) {
		for range n {
			f()
		}
	})
}

// LoopOf is Loop for a program that has its own loop.
func LoopOf(n int, run func(n int)) float64 {
	var rates []float64
	for at := 0; at < n; at += chunk {
		calls := min(chunk, n-at)
		began := time.Now()
		run(calls)
		rates = append(rates, float64(calls)/time.Since(began).Seconds())
	}
	slices.Sort(rates)
	return rates[len(rates)/2]
}

// Allocations is how many heap objects a call of f makes, over n calls. Nothing else
// may run meanwhile.
func Allocations(n int, f func()) float64 {
	f() // what it makes once
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n)
}
