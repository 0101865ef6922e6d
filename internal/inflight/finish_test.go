package inflight

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestWithdrawBeyond(t *testing.T) {
	bubble(t, Config[int]{MaxInFlight: 2}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "a", "b", "a", "c")
		first := expect(t, r, "0/1")
		third := expect(t, r, "2/1")
		highest := -1
		r.WithdrawBeyond(func(id int) { highest = max(highest, id) }, func(id int) bool { return id > highest })
		if highest != 2 {
			t.Fatalf("the highest handed over is %d, want 2", highest)
		}
		if got := results(r); len(got) != 2 || got[0].Token != 3 || got[1].Token != 4 || got[0].Outcome != GivenBack {
			t.Fatalf("withdrawn: %v", got)
		}
		// What fills the gap is handed over still.
		done := make(chan error, 1)
		go func() { done <- r.Quiet(context.Background(), func(int) bool { return true }) }()
		third.Ack()
		first.Ack()
		expect(t, r, "1/1").Ack()
		synctest.Wait()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := results(r); len(got) != 3 {
			t.Errorf("settled: %v", got)
		}
	})
}

func TestQuietDoesNotWaitForPauses(t *testing.T) {
	bubble(t, Config[int]{NackDelay: time.Hour, MaxNackDelay: time.Hour}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "a", "b")
		expect(t, r, "0/1").Nack()
		other := expect(t, r, "2/1")
		synctest.Wait()
		all := func(int) bool { return true }
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := r.Quiet(ctx, all); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while one is with a handler: %v", err)
		}
		if err := r.Quiet(ctx, func(id int) bool { return id < 2 }); err != nil && ctx.Err() == nil {
			t.Errorf("of the paused key: %v", err)
		}
		other.Ack()
		synctest.Wait()
		if err := r.Quiet(context.Background(), all); err != nil {
			t.Error(err)
		}
	})
}
