package outbox

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func testItems(ids ...int64) (items []*item) {
	for _, id := range ids {
		items = append(items, &item{Message: Message{LogID: id, Key: "k", Topic: "t"}, bytes: 10})
	}
	return items
}

func logIDs(items []*item) (ids []int64) {
	for _, it := range items {
		ids = append(ids, it.LogID)
	}
	return ids
}

func TestKeyQueueKeepsTheOrderOfIDs(t *testing.T) {
	t.Parallel()
	q := &keyQueue{index: -1}
	all := testItems(1, 2, 3, 4, 5, 6, 7, 8)
	for _, i := range rand.Perm(len(all)) {
		q.insert(all[i])
	}
	for _, i := range []int{3, 0, 7} { // the middle, the first, the last
		q.remove(all[i])
	}
	q.remove(all[0]) // not there any more
	if got := logIDs(q.items); !slices.Equal(got, []int64{2, 3, 5, 6, 7}) {
		t.Errorf("got %v", got)
	}
}

func TestDueHeapGivesTheReadyQueuesByTheirTime(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var h dueHeap
	var queues []*keyQueue
	for i := range 20 {
		q := &keyQueue{index: -1, items: testItems(1), due: now.Add(time.Duration(rand.IntN(1000)))}
		q.busy, q.left = i%5 == 0, i%7 == 1
		if i%9 == 2 {
			q.items = nil
		}
		h.schedule(q)
		queues = append(queues, q)
	}
	for _, q := range queues { // and all of it changes
		q.busy, q.due = false, now.Add(time.Duration(rand.IntN(1000)))
		h.schedule(q)
	}
	ready := 0
	for _, q := range queues {
		isReady := !q.left && len(q.items) > 0
		if isReady {
			ready++
		}
		if isReady != (q.index >= 0) {
			t.Errorf("in the heap: %v, ready: %v", q.index >= 0, isReady)
		}
	}
	if len(h) != ready {
		t.Errorf("%d in the heap, %d ready", len(h), ready)
	}
	var last time.Time
	for len(h) > 0 {
		q := heap.Pop(&h).(*keyQueue)
		if q.due.Before(last) || q.index != -1 {
			t.Errorf("out of turn: %v after %v, index %d", q.due, last, q.index)
		}
		last = q.due
	}
}

func TestWindowIsBoundedByCountAndBytes(t *testing.T) {
	t.Parallel()
	w := newWindow(3, 25)
	items := testItems(1, 2, 3, 4)
	if n := w.tryPut(items); n != 2 || w.crammed() {
		t.Errorf("%d of 10 bytes each fit into 25", n)
	}
	if n := w.tryPut(items[2:]); n != 0 || !w.crammed() {
		t.Errorf("%d more, crammed %v", n, w.crammed())
	}
	w.take(2)
	huge := testItems(9)
	huge[0].bytes = 1000
	if n := w.tryPut(huge); n != 1 {
		t.Error("one event must always fit, or nothing would ever go on")
	}
	w.take(1)
	small := testItems(1, 2, 3, 4, 5)
	for _, it := range small {
		it.bytes = 0
	}
	if n := w.tryPut(small); n != 3 {
		t.Errorf("%d, want 3 at most", n)
	}
	if items, bytes, ended := w.view(); len(items) != 3 || bytes != 0 || ended {
		t.Errorf("view: %d events, %d bytes, ended %v", len(items), bytes, ended)
	}
	w.end()
	w.reset()
	if items, bytes, ended := w.view(); len(items) != 0 || bytes != 0 || ended || w.crammed() {
		t.Error("a reset window is as new")
	}
}

// Whoever puts waits for room, and no signal is lost.
func TestWindowLetsThePutterWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(2, 1000)
		items := testItems(1, 2, 3, 4, 5, 6, 7)
		put := make(chan int64, len(items))
		go func() {
			defer close(put)
			for rest := items; len(rest) > 0; {
				n, err := w.put(t.Context(), rest)
				if err != nil {
					t.Error(err)
					return
				}
				for _, it := range rest[:n] {
					put <- it.LogID
				}
				rest = rest[n:]
			}
		}()
		var seen []int64
		for len(seen) < len(items) {
			synctest.Wait()
			now, _, _ := w.view()
			if len(now) == 0 || len(now) > 2 {
				t.Fatalf("%d in the window", len(now))
			}
			seen = append(seen, now[0].LogID)
			w.take(1)
		}
		if !slices.Equal(seen, logIDs(items)) {
			t.Errorf("passed: %v", seen)
		}
		synctest.Wait()
		w.tryPut(testItems(8, 9))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := w.put(ctx, testItems(10)); n != 0 || err == nil {
			t.Errorf("put into a full window: %d, %v", n, err)
		}
	})
}

func TestBackoffGoesOnWhereTheLastHolderLeftIt(t *testing.T) {
	t.Parallel()
	r := RetryConfig{Initial: 100 * time.Millisecond, Max: time.Minute, Multiplier: 2}
	for attempts, want := range map[int]time.Duration{0: 100 * time.Millisecond, 1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond, 11: time.Minute, 1_000_000: time.Minute} {
		if got := r.backoff(attempts).NextBackOff(); got < want/2 || got > want*3/2 {
			t.Errorf("after %d attempts: %s, want %s give or take a half", attempts, got, want)
		}
	}
}

// What is kept of an error stands in a column and a log: no password, no NUL, no novel.
func TestErrorTextIsFitToBeKept(t *testing.T) {
	t.Parallel()
	got := errorText(fmt.Errorf("dial amqp://app:hunter2@broker:5672: refused\x00 %s", strings.Repeat("x", 10_000)))
	if strings.Contains(got, "hunter2") || strings.Contains(got, "\x00") || len(got) > 1024 || !strings.Contains(got, "broker:5672") {
		t.Errorf("%d bytes: %.120q", len(got), got)
	}
	if errorText(nil) == "" {
		t.Error("no word for an error that is missing")
	}
}
