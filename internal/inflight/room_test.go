package inflight

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

func plain(id, attempt int) *message.Message {
	return message.NewMessage(strconv.Itoa(id)+"/"+strconv.Itoa(attempt), nil)
}

func newRoom(cfg Config[int]) *Room[int] {
	if cfg.Build == nil {
		cfg.Build = plain
	}
	return New(context.Background(), cfg)
}

func offer(t *testing.T, r *Room[int], keys ...string) {
	t.Helper()
	for _, key := range keys {
		id := int(r.seq)
		if n, err := r.Offer(t.Context(), []Delivery[int]{{Key: key, Size: 10, Token: id}}); n != 1 || err != nil {
			t.Fatalf("offer %d: %d, %v", id, n, err)
		}
	}
}

// inHand are the messages of each room that a test has taken from the channel
// and not asked for yet: between keys there is no order.
var inHand = struct {
	sync.Mutex
	of map[*Room[int]][]*message.Message
}{of: map[*Room[int]][]*message.Message{}}

// expect takes messages as a consumer would, up to the one of that name; "" is none at all.
func expect(t *testing.T, r *Room[int], want string) *message.Message {
	t.Helper()
	synctest.Wait()
	inHand.Lock()
	defer inHand.Unlock()
	var names []string
	for i, m := range inHand.of[r] {
		if m.UUID == want {
			inHand.of[r] = slices.Delete(inHand.of[r], i, i+1)
			return m
		}
		names = append(names, m.UUID)
	}
	for more := true; more; {
		select {
		case m := <-r.Out():
			if m.UUID == want {
				return m
			}
			inHand.of[r] = append(inHand.of[r], m)
			names = append(names, m.UUID)
		default:
			more = false
		}
	}
	if want != "" || len(names) > 0 {
		t.Fatalf("handed over: %q, want %q", names, want)
	}
	return nil
}

func results(r *Room[int]) []Result[int] {
	synctest.Wait()
	return r.Take(nil)
}

// bubble runs f with a clock of its own and closes what is open.
func bubble(t *testing.T, cfg Config[int], f func(t *testing.T, r *Room[int])) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(cfg)
		defer r.Close()
		f(t, r)
	})
}

func TestSlowMessageHoldsBackItsKeyOnly(t *testing.T) {
	bubble(t, Config[int]{MaxInFlight: 8}, func(t *testing.T, r *Room[int]) {
		for range 5 { // quick ones first, so that many are looked after at once
			offer(t, r, "", "", "", "")
			for range 4 {
				(<-r.Out()).Ack()
			}
		}
		results(r)
		offer(t, r, "slow", "slow", "other", "other", "", "")
		first := expect(t, r, "20/1")
		var quick sync.WaitGroup
		quick.Go(func() {
			for range 4 {
				(<-r.Out()).Ack()
			}
		})
		quick.Wait()
		time.Sleep(2 * patience)
		if got := results(r); len(got) != 4 {
			t.Fatalf("behind a slow message %v were settled, want the four others", got)
		}
		expect(t, r, "")
		first.Ack()
		expect(t, r, "21/1").Ack()
	})
}

func TestNackPausesItsKeyOnly(t *testing.T) {
	cfg := Config[int]{MaxInFlight: 2, NackDelay: 100 * time.Millisecond, MaxNackDelay: 300 * time.Millisecond}
	bubble(t, cfg, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "a", "b")
		expect(t, r, "0/1").Nack()
		expect(t, r, "2/1").Ack()
		expect(t, r, "")
		for attempt, pause := range []time.Duration{100, 200, 300, 300} {
			time.Sleep(pause * time.Millisecond * 79 / 100)
			expect(t, r, "")
			time.Sleep(pause * time.Millisecond * 42 / 100)
			m := expect(t, r, "0/"+strconv.Itoa(attempt+2))
			if attempt < 3 {
				m.Nack()
				synctest.Wait()
			} else {
				m.Ack()
			}
		}
		expect(t, r, "1/1").Ack()
		if got := results(r); len(got) != 3 || got[1].Token != 0 {
			t.Fatalf("settled: %v, want 2, 0, 1", got)
		}
	})
}

func TestNackBuildsAFreshMessage(t *testing.T) {
	bubble(t, Config[int]{NackDelay: time.Millisecond}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a")
		first := expect(t, r, "0/1")
		first.Metadata["touched"] = "yes"
		first.Nack()
		synctest.Wait()
		time.Sleep(2 * time.Millisecond)
		second := expect(t, r, "0/2")
		if second == first || len(second.Metadata) > 0 || second.Context().Err() != nil {
			t.Fatalf("the repeat is %v, with %v", second, second.Context().Err())
		}
		if first.Context().Err() == nil {
			t.Fatal("the first message's context is not over")
		}
		second.Ack()
	})
}

func TestVerdicts(t *testing.T) {
	verdict := GiveBack
	cfg := Config[int]{Nacked: func(int, int) Verdict { return verdict }}
	bubble(t, cfg, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "a", "b", "a")
		expect(t, r, "0/1").Nack()
		b := expect(t, r, "2/1")
		m := expect(t, r, "1/1")
		if got := results(r); len(got) != 1 || got[0] != (Result[int]{Token: 0, Outcome: GivenBack, Handed: true}) {
			t.Fatalf("given back: %v", got)
		}
		verdict = GiveBackKey
		m.Nack()
		expect(t, r, "")
		want := []Result[int]{{Token: 1, Outcome: GivenBack, Handed: true}, {Token: 3, Outcome: GivenBack}}
		if got := results(r); !slices.Equal(got, want) {
			t.Fatalf("given back: %v, want %v", got, want)
		}
		b.Ack()
		offer(t, r, "a")
		expect(t, r, "4/1").Ack()
	})
}

func TestOfferBlocks(t *testing.T) {
	cfg := Config[int]{MaxInFlight: 1, MaxBuffered: 4, MaxBufferedBytes: 100}
	bubble(t, cfg, func(t *testing.T, r *Room[int]) {
		offer(t, r, "", "", "", "")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := r.Offer(ctx, []Delivery[int]{{Token: 4}}); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("offered to a full room: %d, %v", n, err)
		}
		if err := r.AwaitRoom(ctx, 1); !errors.Is(err, context.DeadlineExceeded) || r.Free() != 0 {
			t.Fatalf("a full room is free: %v, %d", err, r.Free())
		}
		var offering sync.WaitGroup
		offering.Go(func() {
			n, err := r.Offer(t.Context(), []Delivery[int]{{Token: 4, Size: 1000}, {Token: 5}})
			if n != 2 || err != nil {
				t.Errorf("offered: %d, %v", n, err)
			}
		})
		for id := range 6 {
			if s := r.Stats(); s.Buffered > 4 || id < 5 && s.InFlight != 1 {
				t.Errorf("in the room: %+v", s)
			}
			expect(t, r, strconv.Itoa(id)+"/1").Ack()
		}
		offering.Wait()
		results(r)
		if err := r.AwaitRoom(t.Context(), 100); err != nil || r.Free() != 4 {
			t.Fatalf("an empty room: %v, %d", err, r.Free())
		}
		if err := r.Add(make([]Delivery[int], 6)); err != nil || r.Stats().Buffered != 6 {
			t.Fatalf("added: %v, %+v", err, r.Stats())
		}
	})
}

func TestOfferBlocksByBytes(t *testing.T) {
	bubble(t, Config[int]{MaxBufferedBytes: 25}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "a", "a") // 10 bytes each: the third is let in, and the room is full
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := r.Offer(ctx, []Delivery[int]{{Size: 1}}); n != 0 || !errors.Is(err, context.DeadlineExceeded) || r.Free() != 0 {
			t.Fatalf("offered beyond the bytes: %d, %v", n, err)
		}
		expect(t, r, "0/1").Ack()
		expect(t, r, "1/1").Ack()
		synctest.Wait()
		offer(t, r, "a")
	})
}

// What is taken out while its message is being built is not handed over.
func TestTakenOutWhileItIsBuilt(t *testing.T) {
	for _, how := range []string{"lost", "withdrawn"} {
		t.Run(how, func(t *testing.T) {
			building, goOn := make(chan struct{}), make(chan struct{})
			r := newRoom(Config[int]{Build: func(id, attempt int) *message.Message {
				if id == 0 {
					close(building)
					<-goOn
				}
				return plain(id, attempt)
			}})
			offer(t, r, "a", "a")
			<-building
			first := func(id int) bool { return id == 0 }
			if how == "lost" {
				r.Lose(first, errModelLost)
			} else {
				r.Withdraw(first)
			}
			close(goOn)
			if m := <-r.Out(); m.UUID != "1/1" {
				t.Errorf("handed over: %s, want 1/1", m.UUID)
			} else {
				m.Ack()
			}
			r.Close()
			want := []Result[int]{{0, GivenBack, false}, {1, Acked, true}}
			if how == "lost" {
				want = want[1:]
			}
			if got := r.Take(nil); !slices.Equal(got, want) {
				t.Errorf("reported: %v, want %v", got, want)
			}
		})
	}
}

// A handler that comes back in the moment when it is given up is either given up or heard.
func TestAbandonedIsNotReportedToo(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			r := newRoom(Config[int]{CloseTimeout: time.Second, CloseGrace: time.Second})
			offer(t, r, "a", "b", "c")
			for _, id := range []string{"0/1", "1/1", "2/1"} {
				m := expect(t, r, id)
				time.AfterFunc(2*time.Second, func() { m.Ack() })
			}
			left := r.Close()
			if got := r.Take(nil); len(left)+len(got) != 3 {
				t.Errorf("abandoned: %v, reported: %v", left, got)
			}
		})
	}
}

func TestLose(t *testing.T) {
	gone := errors.New("revoked")
	bubble(t, Config[int]{MaxInFlight: 3, NackDelay: time.Second}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "a")
		a := expect(t, r, "0/1")
		offer(t, r, "b")
		b := expect(t, r, "2/1")
		offer(t, r, "c")
		expect(t, r, "3/1").Nack()
		synctest.Wait()
		offer(t, r, "", "b")
		synctest.Wait() // 4 is in the channel, 3 is paused, 1 and 5 wait for their keys
		if handlers := r.Lose(func(id int) bool { return id != 2 && id != 5 }, gone); handlers != 1 {
			t.Errorf("%d handlers have lost their message, want 1", handlers)
		}
		if err := context.Cause(a.Context()); !errors.Is(err, gone) || a.Context().Err() == nil {
			t.Errorf("the context's cause: %v", err)
		}
		if b.Context().Err() != nil {
			t.Error("what was not lost is cancelled")
		}
		expect(t, r, "")
		offer(t, r, "a") // again ours; waits for the handler of the lost one
		expect(t, r, "")
		a.Ack()
		expect(t, r, "6/1").Ack()
		b.Ack()
		expect(t, r, "5/1").Ack()
		for _, res := range results(r) {
			if res.Token != 6 && res.Token != 2 && res.Token != 5 {
				t.Errorf("reported: %v", res)
			}
		}
		if s := r.Stats(); s != (Stats{}) {
			t.Errorf("left: %+v", s)
		}
	})
}

func TestLoseTakesBackWhatWasNotTakenByAdapter(t *testing.T) {
	bubble(t, Config[int]{}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "b")
		expect(t, r, "0/1").Ack()
		expect(t, r, "1/1").Ack()
		synctest.Wait()
		r.Lose(func(id int) bool { return id == 0 }, errModelLost)
		if got := results(r); len(got) != 1 || got[0].Token != 1 {
			t.Fatalf("reported: %v, want 1", got)
		}
	})
}

func TestWithdraw(t *testing.T) {
	bubble(t, Config[int]{MaxInFlight: 2, NackDelay: time.Second}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a")
		a := expect(t, r, "0/1")
		offer(t, r, "a", "b", "c") // 2 is in the channel, 3 waits
		mine := func(id int) bool { return id != 3 }
		synctest.Wait()
		r.Withdraw(mine)
		expect(t, r, "3/1").Ack()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Await(ctx, mine); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("awaited a handler: %v", err)
		}
		var awaiting sync.WaitGroup
		awaiting.Go(func() {
			if err := r.Await(t.Context(), mine); err != nil {
				t.Error(err)
			}
		})
		a.Nack() // no pause: it goes back
		awaiting.Wait()
		got := results(r)
		slices.SortFunc(got, func(a, b Result[int]) int { return a.Token - b.Token })
		want := []Result[int]{{0, GivenBack, true}, {1, GivenBack, false}, {2, GivenBack, false}, {3, Acked, true}}
		if !slices.Equal(got, want) {
			t.Fatalf("reported: %v, want %v", got, want)
		}
	})
}

func TestCloseDrains(t *testing.T) {
	bubble(t, Config[int]{MaxInFlight: 2}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a")
		a := expect(t, r, "0/1")
		offer(t, r, "a", "b", "c")
		var closing sync.WaitGroup
		for range 3 {
			closing.Go(func() {
				if left := r.Close(); len(left) != 0 {
					t.Errorf("abandoned: %v", left)
				}
			})
		}
		synctest.Wait()
		if _, err := r.Offer(t.Context(), []Delivery[int]{{}}); !errors.Is(err, ErrClosed) {
			t.Errorf("offered to a closed room: %v", err)
		}
		time.Sleep(time.Second)
		if a.Context().Err() != nil {
			t.Error("the handler was cancelled although it has time")
		}
		a.Ack()
		closing.Wait()
		if _, open := <-r.Out(); open {
			t.Error("handed over after Close")
		}
		acked := 0
		got := results(r)
		for _, res := range got {
			if res.Outcome == Acked {
				acked++
			}
		}
		if len(got) != 4 || acked != 1 {
			t.Errorf("reported: %v", got)
		}
	})
}

func TestCloseAbandons(t *testing.T) {
	enough := errors.New("enough")
	cfg := Config[int]{CloseTimeout: time.Second, CloseGrace: time.Second, CloseCause: enough}
	bubble(t, cfg, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "b")
		a, b := expect(t, r, "0/1"), expect(t, r, "1/1")
		go func() {
			<-b.Context().Done()
			b.Nack()
		}()
		start := time.Now()
		if left := r.Close(); !slices.Equal(left, []int{0}) || time.Since(start) != 2*time.Second {
			t.Errorf("abandoned %v after %v", left, time.Since(start))
		}
		if err := context.Cause(a.Context()); !errors.Is(err, enough) {
			t.Errorf("cause: %v", err)
		}
		a.Ack() // nobody listens
		if got := results(r); !slices.Equal(got, []Result[int]{{1, GivenBack, true}}) {
			t.Errorf("reported: %v", got)
		}
	})
}

func TestCloseAtAnyTime(t *testing.T) {
	for n := range 60 {
		r := newRoom(Config[int]{MaxInFlight: 4, MaxBuffered: 8})
		got := 0
		var all sync.WaitGroup
		all.Go(func() {
			for m := range r.Out() {
				got++
				m.Ack()
			}
		})
		var in int
		all.Go(func() { in, _ = r.Offer(context.Background(), make([]Delivery[int], 300)) })
		var res []Result[int]
		for len(res) < n%50*5 {
			<-r.Changed()
			res = r.Take(res)
		}
		r.Close()
		all.Wait()
		if res = r.Take(res); len(res) != in || in < got {
			t.Fatalf("%d were taken, %d handed over, %d reported", in, got, len(res))
		}
	}
	newRoom(Config[int]{}).Close() // before use
}

func TestMessageContext(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		base, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "value"))
		r := New(base, Config[int]{Build: plain})
		defer r.Close()
		offer(t, r, "a", "b", "c", "d")
		a, b, c, d := expect(t, r, "0/1"), expect(t, r, "1/1"), expect(t, r, "2/1"), expect(t, r, "3/1")
		cancel()
		if a.Context().Err() != nil || a.Context().Value(key{}) != "value" {
			t.Errorf("before: %v, %v", a.Context().Err(), a.Context().Value(key{}))
		}
		derived, stop := context.WithTimeout(b.Context(), time.Hour)
		defer stop()
		done := c.Context().Done()
		r.Lose(func(id int) bool { return id < 3 }, errModelLost)
		for _, ctx := range []context.Context{a.Context(), derived, c.Context()} {
			if !errors.Is(ctx.Err(), context.Canceled) || !errors.Is(context.Cause(ctx), errModelLost) {
				t.Errorf("lost: %v, %v", ctx.Err(), context.Cause(ctx))
			}
		}
		<-done
		d.Ack()
		synctest.Wait()
		if err := d.Context().Err(); !errors.Is(err, context.Canceled) || d.Context().Value(key{}) != "value" {
			t.Errorf("settled: %v", err)
		}
		<-d.Context().Done()
		for _, m := range []*message.Message{a, b, c} {
			m.Ack()
		}
	})
}

func TestEach(t *testing.T) {
	bubble(t, Config[int]{MaxInFlight: 1}, func(t *testing.T, r *Room[int]) {
		offer(t, r, "a", "b", "a")
		expect(t, r, "0/1")
		var with, without []int
		r.Each(func(id int, handed bool) {
			if handed {
				with = append(with, id)
			} else {
				without = append(without, id)
			}
		})
		if !slices.Equal(with, []int{0}) || !slices.Equal(without, []int{1, 2}) {
			t.Errorf("handed over %v, not %v", with, without)
		}
	})
}

func TestOutlet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOutlet(4)
		a := newRoom(Config[int]{MaxInFlight: 2, Outlet: o, Build: func(id, _ int) *message.Message { return message.NewMessage("a"+strconv.Itoa(id), nil) }})
		b := newRoom(Config[int]{MaxInFlight: 2, Outlet: o, Build: func(id, _ int) *message.Message { return message.NewMessage("b"+strconv.Itoa(id), nil) }})
		offer(t, a, "", "", "")
		offer(t, b, "", "", "")
		synctest.Wait()
		if len(o.Out()) != 4 {
			t.Fatalf("%d messages are in the channel", len(o.Out()))
		}
		if left := a.Close(); len(left) != 0 || len(results(a)) != 3 {
			t.Errorf("left: %v", left)
		}
		expect(t, b, "b0").Ack()
		expect(t, b, "b1").Ack()
		expect(t, b, "b2").Ack()
		b.Close()
		o.Close()
		if _, open := <-o.Out(); open || len(results(b)) != 3 {
			t.Error("something is left")
		}
	})
}
