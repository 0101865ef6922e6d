package inflight

import (
	"testing"

	"pgregory.net/rapid"
)

func TestWatermarkModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w Watermark
		var added []int64
		done := map[int64]bool{}
		offset := int64(rapid.IntRange(0, 1000).Draw(t, "first"))
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				w.Add(offset)
				added = append(added, offset)
				offset += rapid.SampledFrom([]int64{1, 1, 1, 1, 5}).Draw(t, "gap")
			case 2, 3:
				if len(added) > 0 {
					o := added[rapid.IntRange(0, len(added)-1).Draw(t, "which")]
					w.Done(o)
					done[o] = true
				}
			case 4:
				w.Done(offset + 1) // never added
				w.Add(offset - 10) // not above the last
				if len(added) == 0 {
					added = append(added, offset-10)
				}
			}
			low, open := int64(0), 0
			if len(added) > 0 {
				low = added[0]
			}
			for i, o := range added {
				if !done[o] {
					open = len(added) - i
					break
				}
				low = o + 1
			}
			got, ok := w.Low()
			if ok != (len(added) > 0) || got != low || w.Open() != open {
				t.Fatalf("low %d (%v), open %d; want %d, %d", got, ok, w.Open(), low, open)
			}
		}
	})
}

func BenchmarkWatermark(b *testing.B) {
	var w Watermark
	for i := range int64(b.N) {
		w.Add(i)
		if i >= 64 {
			w.Done(i - 64 + (i%64)/2)
			w.Done(i - 64)
		}
	}
}
