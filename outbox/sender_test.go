package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

// publisherFunc is a publisher without a batch call.
type publisherFunc func(topic string, m *message.Message) error

func (f publisherFunc) Publish(topic string, msgs ...*message.Message) error {
	return f(topic, msgs[0])
}
func (publisherFunc) Close() error { return nil }

// batchFunc is a publisher with one.
type batchFunc struct {
	publisherFunc
	contract BatchContract
	send     func(ctx context.Context, msgs []*Message, results []Result)
}

func (b batchFunc) PublishBatch(ctx context.Context, msgs []*Message, results []Result) {
	b.send(ctx, msgs, results)
}
func (b batchFunc) BatchContract() BatchContract { return b.contract }

func TestErrorOfAStockPublisherIsClassified(t *testing.T) {
	t.Parallel()
	for want, err := range map[Status]error{
		Done:      nil,
		Passing:   fmt.Errorf("dial: %w", ErrUnavailable),
		Permanent: fmt.Errorf("too large: %w", ErrPermanent),
	} {
		if got := resultOf(err); got.Status != want || got.Err != err {
			t.Errorf("%v: got %v", err, got)
		}
	}
	if got := resultOf(errRefused).Status; got != Passing {
		t.Errorf("any other error is %v, want passing", got)
	}
}

func TestPublishersBoundsAndTheRelaysBothHold(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ theirs, want BatchContract }{
		{BatchContract{}, BatchContract{MaxBatch: 100, MaxBatchBytes: 1000}},
		{BatchContract{true, 10, 2000}, BatchContract{true, 10, 1000}},
		{BatchContract{false, 200, 20}, BatchContract{false, 100, 20}},
	} {
		if got := newSender(batchFunc{contract: test.theirs}, 100, 1000, 1).contract; got != test.want {
			t.Errorf("%+v: got %+v", test.theirs, got)
		}
	}
	if got := newSender(publisherFunc(nil), 100, 1000, 1).contract; got.MaxBatch != 1 {
		t.Errorf("a stock publisher gets %d messages at a time", got.MaxBatch)
	}
}

func messages(keys ...string) (msgs []*Message) {
	for _, k := range keys {
		msgs = append(msgs, &Message{EventID: events.NewID(), Topic: "t", Key: k})
	}
	return msgs
}

func TestPanicIsAPassingFailureOfWhatHadNoResult(t *testing.T) {
	t.Parallel()
	s := newSender(batchFunc{send: func(_ context.Context, _ []*Message, results []Result) {
		results[0] = Result{Status: Done}
		panic("boom")
	}}, 10, 1000, 1)
	c := s.newCaller()
	defer c.close()
	results, left := c.send(t.Context(), time.Minute, messages("a", "b"))
	if left != nil || results[0].Status != Done || results[1].Status != Passing || !strings.Contains(results[1].Err.Error(), "panicked: boom") {
		t.Errorf("got %v, left behind %v", results, left != nil)
	}
}

// A call that does not come back is left behind: bounded in number, and gone when it comes back.
func TestCallThatHangsIsLeftBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := newSender(batchFunc{send: func(_ context.Context, _ []*Message, results []Result) {
			<-release
			results[0] = Result{Status: Done}
		}}, 10, 1000, 2)
		c := s.newCaller()
		for i := range 2 {
			start := time.Now()
			results, left := c.send(t.Context(), time.Second, messages("a"))
			if left == nil || results[0].Status != Unknown || !errors.Is(results[0].Err, context.DeadlineExceeded) || time.Since(start) != time.Second+grace {
				t.Errorf("call %d: got %v, left behind %v, after %s", i, results, left != nil, time.Since(start))
			}
		}
		// The third is one too many: the caller waits for it.
		back := make(chan []Result, 1)
		go func() {
			results, _ := c.send(t.Context(), time.Second, messages("a"))
			back <- results
		}()
		time.Sleep(time.Hour) // the bubble's clock: nothing really waits
		select {
		case <-back:
			t.Error("a third call was left behind")
		default:
		}
		close(release)
		if results := <-back; results[0].Status != Done {
			t.Errorf("the one waited for: %v", results)
		}
		synctest.Wait()
		if n := s.abandoned.Load(); n != 0 {
			t.Errorf("%d calls are counted as left behind after all have come back", n)
		}
		c.close()
	})
}

func TestCallEndsWithItsTenure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSender(batchFunc{send: func(ctx context.Context, _ []*Message, results []Result) {
			<-ctx.Done()
			results[0] = Result{Unknown, ctx.Err()}
		}}, 10, 1000, 1)
		c := s.newCaller()
		defer c.close()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		if results, left := c.send(ctx, time.Hour, messages("a")); left != nil || results[0].Status != Unknown || time.Since(start) != time.Second {
			t.Errorf("got %v, left behind %v, after %s", results, left != nil, time.Since(start))
		}
	})
}

func TestStockPublisherWorksInManyLanes(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	var inCall, most atomic.Int64
	// Closed once 48 calls are under way: keys fall into lanes by a hash.
	all := make(chan struct{})
	var once sync.Once
	keys := names("k", 400)
	f.backlog(1, keys...)
	cfg := f.config()
	cfg.Lease = 10 * time.Second
	f.start(publisherFunc(func(topic string, m *message.Message) error {
		n := inCall.Add(1)
		defer inCall.Add(-1)
		for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
		}
		if n == 48 {
			once.Do(func() { close(all) })
		}
		select {
		case <-all:
		case <-m.Context().Done():
			return m.Context().Err()
		}
		return stock{s}.Publish(topic, m)
	}), cfg)
	eventually(t, func() bool { return s.distinct() == 400 }, "all delivered")
	if n := most.Load(); n < 48 || n > 64 {
		t.Errorf("%d calls at once, want up to 64", n)
	}
}

func TestEachAttemptGetsAFreshMessage(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	var tried atomic.Int64
	f.backlog(3, "k")
	cfg := f.config()
	f.start(publisherFunc(func(topic string, m *message.Message) error {
		for _, h := range []string{"mine", "_watermill_retries"} {
			if m.Metadata.Get(h) != "" {
				t.Errorf("attempt %d: the header of an earlier attempt is there", tried.Load())
			}
			m.Metadata.Set(h, "x")
		}
		if m.Metadata.Get(events.HeaderPartitionKey) != "k" || m.Metadata.Get(events.HeaderPosition) == "" {
			t.Errorf("headers %v", m.Metadata)
		}
		m.Metadata.Set(events.HeaderPartitionKey, "spoilt")
		if tried.Add(1)%7 != 0 { // far enough to be parked
			return errRefused
		}
		m.Metadata.Set(events.HeaderPartitionKey, "k")
		return stock{s}.Publish(topic, m)
	}), cfg)
	eventually(t, func() bool { return s.distinct() == 3 }, "all delivered")
	s.inOrder(t, "k", 3)
}

func TestPublisherThatPanicsStopsNothing(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	f.backlog(5, "bad", "good")
	cfg := f.config()
	cfg.Retry.MaxAttempts = 4
	f.start(publisherFunc(func(topic string, m *message.Message) error {
		if m.Metadata.Get(events.HeaderPartitionKey) == "bad" {
			panic(fmt.Sprint("on ", m.UUID))
		}
		return stock{s}.Publish(topic, m)
	}), cfg)
	eventually(t, func() bool { return len(s.of("good")) == 5 }, "others flow")
	eventually(t, func() bool { return slices.Contains(f.parkedStates("bad"), ParkedGivenUp) }, "given up")
	if e, err := f.desk().Get(t.Context(), f.parkedID("bad", 1)); err != nil || !strings.HasPrefix(e.LastError, "the publisher panicked: on ") || len(e.LastError) > 1024 {
		t.Errorf("got %q, %v", e.LastError, err)
	}
}

// One event whose call never comes back: its key waits, all others flow, Run stops
// in time, and when the publisher comes back nothing is left of it.
func TestPublisherThatHangsStopsOneKeyOnly(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	f := setUp(t, testkit.PG15)
	s := newSink()
	release := make(chan struct{})
	var hanging, hung atomic.Int64
	p := publisherFunc(func(topic string, m *message.Message) error {
		if m.Metadata.Get(events.HeaderPartitionKey) == "bad" {
			hung.Add(1)
			hanging.Add(1)
			defer hanging.Add(-1)
			<-release // deaf to its context
		}
		return stock{s}.Publish(topic, m)
	})
	cfg := f.config()
	cfg.Lanes, cfg.PublishTimeout, cfg.DrainTimeout, cfg.Window = 2, 20*time.Millisecond, 500*time.Millisecond, 16
	cfg.Logger = slog.New(newBook(t))
	f.backlog(3, "bad")
	stop := f.start(p, cfg)
	keys := names("good", 8)
	n := 0
	for eventually(t, func() bool { return hung.Load() >= 1 }, "it hangs"); n < 40; n++ {
		for _, k := range keys {
			f.add(k, n+1, 1)
		}
	}
	eventually(t, func() bool { return s.distinct() == n*len(keys) }, "the others flow")
	for _, k := range keys {
		s.inOrder(t, k, n)
	}
	eventually(t, func() bool { return hung.Load() == 2 }, "it is tried again as long as there is a spare goroutine")
	f.add("later", 1, 20)
	eventually(t, func() bool { return len(s.of("later")) == 20 }, "the others flow on")
	if h := hanging.Load(); h > 2 {
		t.Errorf("%d calls hang, more than there are lanes", h)
	}
	began := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > cfg.DrainTimeout+2*time.Second {
		t.Errorf("stopping took %s", took)
	}
	close(release)
	f.close()
	goleak.VerifyNone(t, leaks)
	if len(s.of("bad")) > 1 {
		t.Errorf("delivered %v: at most the first was ever sent", s.of("bad"))
	}
}

// A call that was left behind still reads its messages: nothing may change them.
func TestMessageOfACallLeftBehindIsNotTouched(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	var n atomic.Int64
	release, late := make(chan struct{}), make(chan string, 1)
	p := batchFunc{contract: BatchContract{StopsKeyAtFirstFailure: true}, send: func(ctx context.Context, msgs []*Message, results []Result) {
		switch n.Add(1) {
		case 1, 2, 3, 4, 5: // until it is parked
			for i := range results {
				results[i] = Result{Passing, errRefused}
				break
			}
		case 6: // hangs, and reads on later
			<-release
			late <- string(msgs[0].Payload)
		default:
			s.PublishBatch(ctx, msgs, results)
		}
	}}
	cfg := f.config()
	cfg.PublishTimeout = 50 * time.Millisecond
	f.backlog(1, "k")
	f.start(p, cfg)
	eventually(t, func() bool { return s.distinct() == 1 && len(f.parkedStates("k")) == 0 }, "tried again, delivered, completed")
	close(release)
	s.mu.Lock()
	defer s.mu.Unlock()
	if got, want := <-late, string(s.got[0].Payload); got != want || want == "" {
		t.Errorf("the call left behind sees %q, want %q", got, want)
	}
}

func TestAtMostOneEventPerKeyInACallThatDoesNotStopKeys(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	s.contract = BatchContract{}
	var failures calls
	s.setRule(func(m *Message, n int) Result { // each event fails once, some of a call only
		if m.LogID%5 == 0 && failures.n.Add(1)%2 == 1 {
			return Result{Passing, errRefused}
		}
		return Result{Status: Done}
	})
	var mu sync.Mutex
	underway := map[string]bool{}
	biggest := 0
	p := batchFunc{send: func(ctx context.Context, msgs []*Message, results []Result) {
		mu.Lock()
		biggest = max(biggest, len(msgs))
		for _, m := range msgs {
			if underway[m.Key] {
				t.Errorf("key %s is in two places", m.Key)
			}
			underway[m.Key] = true
		}
		mu.Unlock()
		s.PublishBatch(ctx, msgs, results)
		mu.Lock()
		defer mu.Unlock()
		for _, m := range msgs {
			delete(underway, m.Key)
		}
	}}
	keys := names("k", 20)
	f.backlog(15, keys...)
	f.start(p, f.config())
	eventually(t, func() bool { return s.distinct() == 300 }, "all delivered")
	for _, k := range keys {
		s.inOrder(t, k, 15)
	}
	if biggest < 2 || s.repeats != 0 {
		t.Errorf("largest call %d, repeats %d", biggest, s.repeats)
	}
}

// What was not attempted is sent again, in order, with no attempt counted and no hot loop.
func TestNotAttemptedIsSentAgain(t *testing.T) {
	t.Parallel()
	for name, contract := range contracts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			s := newSink()
			var idleCalls atomic.Int64
			awake := make(chan struct{})
			p := batchFunc{contract: contract, send: func(ctx context.Context, msgs []*Message, results []Result) {
				select {
				case <-awake:
					s.PublishBatch(ctx, msgs[:1], results[:1]) // and never more than the first
				default:
					idleCalls.Add(1)
				}
			}}
			cfg := f.config()
			cfg.Lanes, cfg.Retry.MaxAttempts = 1, 1
			f.backlog(20, "a", "b", "c")
			f.start(p, cfg)
			eventually(t, func() bool { return idleCalls.Load() >= 1 }, "it asks")
			before, began := idleCalls.Load(), time.Now()
			eventually(t, func() bool { return idleCalls.Load() >= 20 }, "it asks on")
			// Each pause is 5 ms; a few of them may be cut short by what wakes a lane.
			if n, took := idleCalls.Load()-before, time.Since(began); took < time.Duration(n)*time.Millisecond {
				t.Errorf("%d calls in vain within %s: a hot loop", n, took)
			}
			close(awake)
			eventually(t, func() bool { return s.distinct() == 60 }, "all delivered")
			for _, k := range []string{"a", "b", "c"} {
				s.inOrder(t, k, 20)
			}
			if n := f.count(`SELECT count(*) FROM ` + f.table("parked")); n != 0 {
				t.Errorf("%d are parked", n)
			}
		})
	}
}

func TestPositionNamesSourceIncarnationAndID(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	f.backlog(1, "k")
	f.start(s, f.config())
	eventually(t, func() bool { return s.distinct() == 1 }, "delivered")
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.Split(s.got[0].Position(), "/")
	if len(parts) != 3 || uuid.Validate(parts[0]) != nil || parts[1] != "1" || parts[2] != fmt.Sprint(s.got[0].LogID) {
		t.Errorf("position %q", s.got[0].Position())
	}
}
