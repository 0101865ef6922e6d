package harness

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Median of vs, which it does not change. NaN when there are none.
func Median(vs []float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(vs))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// Spread is the smallest and the largest of some values.
type Spread struct{ Min, Max float64 }

// SpreadOf is the spread of vs.
func SpreadOf(vs []float64) Spread {
	if len(vs) == 0 {
		return Spread{math.NaN(), math.NaN()}
	}
	return Spread{slices.Min(vs), slices.Max(vs)}
}

// String prints what Line prints: 0.61..0.68.
func (s Spread) String() string { return number(s.Min) + ".." + number(s.Max) }

// Percentile of ds, which it sorts: the smallest value that p (0 to 1) of them do not exceed.
func Percentile(ds []time.Duration, p float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	slices.Sort(ds)
	i := int(math.Ceil(p*float64(len(ds)))) - 1
	return ds[max(0, min(i, len(ds)-1))]
}

// Milliseconds of d, with their fraction.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// PerSecond is n things in d as a rate.
func PerSecond(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }

// number prints a figure with three significant digits, or whole when it is large.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "none"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.01 || v == 0:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.4f", v)
	}
}
