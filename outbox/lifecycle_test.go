package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/postbus/postbus/internal/testkit"
)

// stream appends to the keys, in turns and without end, until it is stopped; then
// it tells how many events each has.
func (f *fixture) stream(keys ...string) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	var writing sync.WaitGroup
	n := 0
	writing.Go(func() {
		for ; ctx.Err() == nil; n++ {
			if err := pgx.BeginFunc(context.Background(), f.pool, func(tx pgx.Tx) error {
				for _, k := range keys {
					if err := f.log.Append(context.Background(), tx, event(k, n+1)); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				f.t.Error(err)
				return
			}
			f.log.Wake()
		}
	})
	stop = sync.OnceValue(func() int { cancel(); writing.Wait(); return n })
	f.t.Cleanup(func() { stop() })
	return stop
}

func (s *sink) allInOrder(t testing.TB, keys []string, n int) {
	t.Helper()
	eventually(t, func() bool { return s.distinct() == n*len(keys) }, "all delivered")
	for _, k := range keys {
		s.inOrder(t, k, n)
	}
}

func TestRunTwiceIsRefused(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	relay, err := NewRelay(f.as(testkit.Relay), s, f.config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	f.backlog(1, "k")
	eventually(t, func() bool { return s.distinct() == 1 }, "it runs")
	if err := relay.Run(ctx); !errors.Is(err, ErrAlreadyRunning) || !strings.Contains(err.Error(), `"test"`) {
		t.Errorf("a second Run: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("a clean stop: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- relay.Run(ctx) }()
	f.add("k", 2, 1)
	eventually(t, func() bool { return s.distinct() == 2 }, "it may run again afterwards")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("a clean stop: %v", err)
	}
	if s.repeats != 0 {
		t.Errorf("%d repeats", s.repeats)
	}
}

func TestStandbyTakesOverAtOnceAfterACleanStop(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	cfg := f.config()
	cfg.Lease = time.Minute // it is given up, not waited for
	first, second := newSink(), newSink()
	stop := f.start(first, cfg)
	f.backlog(1, "k")
	eventually(t, func() bool { return first.distinct() == 1 }, "the first works")
	f.start(second, cfg)
	f.add("k", 2, 3)
	eventually(t, func() bool { return first.distinct() == 4 }, "the first works")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	f.add("k", 5, 1)
	eventually(t, func() bool { return second.distinct() == 1 }, "the second goes on")
	// It looks every second, give or take a fifth.
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("taking over took %s", took)
	}
	if got := second.of("k"); got[0] != 5 || first.repeats != 0 {
		t.Errorf("the second began at %d; repeats: %d", got[0], first.repeats)
	}
}

func TestStandbyTakesOverWithinTheLeaseAfterAKill(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	spec := childSpec{Database: testkit.AddressOf(f.as(testkit.Relay)), Schema: f.schema, Broker: s.serve(t), Window: 100, Attempts: 5, Lease: time.Second}
	args, _ := json.Marshal(spec)
	child := testkit.StartChild(t, "relay at a failpoint", string(args))
	f.backlog(1, "k")
	eventually(t, func() bool { return s.distinct() == 1 }, "the child works")
	f.start(&remoteSink{addr: spec.Broker}, spec.config())
	child.Kill9()
	began := time.Now()
	f.add("k", 2, 1)
	eventually(t, func() bool { return s.distinct() == 2 }, "the standby goes on")
	if took := time.Since(began); took > spec.Lease+2*time.Second {
		t.Errorf("taking over took %s, the lease is %s", took, spec.Lease)
	}
}

// Twenty times under load: nothing lost, and nothing sent twice.
func TestCleanStopLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	for name, contract := range contracts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			s := newSink()
			s.contract = contract
			keys := names("k", 40)
			cfg := f.config()
			cfg.Window, cfg.Batch, cfg.Lanes = 400, 10, 4
			var slow atomic.Int64
			s.setRule(func(m *Message, n int) Result { // uneven lanes, and a failure now and then
				if slow.Add(1)%50 == 0 {
					return Result{Passing, errRefused}
				}
				return Result{Status: Done}
			})
			f.backlog(20, keys...)
			stop := f.stream(keys...)
			for i := range 20 {
				cfg.Logger = slog.New(newBook(t))
				end := f.start(s, cfg)
				want := s.distinct() + 30
				eventually(t, func() bool { return s.distinct() >= want }, "round %d works", i)
				if err := end(); err != nil {
					t.Fatal(err)
				}
			}
			n := stop()
			// What the stream and the backlog have numbered alike is told apart by their ids.
			f.start(s, cfg)
			eventually(t, func() bool { return s.distinct() == (n+20)*len(keys) }, "all delivered")
			if s.repeats != 0 {
				t.Errorf("%d of %d events were sent twice", s.repeats, s.distinct())
			}
			for _, k := range keys {
				last := 0
				for i, n := range s.of(k) {
					if i == 20 {
						last = 0
					}
					if n != last+1 {
						t.Errorf("key %s: out of order: %v", k, s.of(k))
						break
					}
					last = n
				}
			}
		})
	}
}

// A holder that is frozen past its lease wakes up and finds that it is none.
func TestFrozenHolderDoesNotMoveThePosition(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	spec := childSpec{Database: testkit.AddressOf(f.as(testkit.Relay)), Schema: f.schema, Broker: s.serve(t), Window: 30, Attempts: 5, Lease: 400 * time.Millisecond}
	keys := names("k", 10)
	args, _ := json.Marshal(spec)
	child := testkit.StartChild(t, "relay at a failpoint", string(args))
	stop := f.stream(keys...)
	eventually(t, func() bool { return s.distinct() > 50 }, "the child works")
	holders := func() (n int) {
		return f.count(`SELECT count(DISTINCT holder) FROM ` + f.table("relay_link"))
	}
	for i := range 2 {
		child.Stop()
		end := f.start(&remoteSink{addr: spec.Broker, contract: BatchContract{StopsKeyAtFirstFailure: true}}, spec.config())
		was := s.distinct()
		eventually(t, func() bool { return s.distinct() > was+50 }, "the other goes on")
		before := f.count(`SELECT count(*) FROM ` + f.table("relay_link"))
		child.Cont()
		eventually(t, func() bool { return strings.Count(child.Output(), "level=WARN") > i }, "it notices")
		eventually(t, func() bool { return f.count(`SELECT count(*) FROM `+f.table("relay_link")) > before+3 }, "the other goes on")
		if i == 0 && holders() != 2 {
			t.Errorf("%d holders have written links, want the child and its successor", holders())
		}
		was = s.distinct()
		if err := end(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { return s.distinct() > was+50 }, "the child takes its turn again")
	}
	n := stop()
	s.allInOrder(t, keys, n)
	// Each freeze repeats at most the window, and the calls under way in three lanes.
	if most := 4 * (spec.Window + 15); s.repeats > most {
		t.Errorf("%d repeats, want %d at most", s.repeats, most)
	}
}

// While the lease cannot be renewed nothing is sent after its end.
func TestNothingIsSentAfterTheLeaseHasRunOut(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	other := *f
	other.pool = testkit.Pool(t, proxy.URL())
	cfg := f.config()
	cfg.Lease, cfg.PublishTimeout, cfg.Window, cfg.Lanes = 600*time.Millisecond, 50*time.Millisecond, 5000, 1
	var last atomic.Int64 // when a call was made
	p := batchFunc{contract: s.contract, send: func(ctx context.Context, msgs []*Message, results []Result) {
		last.Store(time.Now().UnixNano())
		s.PublishBatch(ctx, msgs[:1], results[:1])
	}}
	cfg.Batch = 2
	// Each call carries one event and fails for the other: calls go on without the database.
	f.backlog(500, names("k", 8)...)
	b := newBook(t)
	cfg.Logger = slog.New(b)
	other.start(p, cfg)
	eventually(t, func() bool { return s.distinct() > 20 }, "it works")
	stalled := time.Now()
	proxy.Stall()
	eventually(t, func() bool { return b.times("lease lost") > 0 }, "it notices")
	if after := time.Duration(last.Load() - stalled.UnixNano()); after > cfg.Lease {
		t.Errorf("a call was made %s after the database was gone, the lease is %s", after, cfg.Lease)
	}
	proxy.Resume()
	s.setRule(nil)
	eventually(t, func() bool { return s.distinct() == 4000 }, "it comes back")
	for _, k := range names("k", 8) {
		s.inOrder(t, k, 500)
	}
	if s.repeats != 0 {
		t.Errorf("%d repeats, though the process remembers what it has sent", s.repeats)
	}
}

func TestCutConnectionsLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	proxy := testkit.NewProxy(t, testkit.URL(t, testkit.PG15))
	other := *f
	other.pool = testkit.Pool(t, proxy.URL())
	cfg := f.config()
	cfg.Window, cfg.Batch = 200, 20
	keys := names("k", 20)
	other.start(s, cfg)
	stop := f.stream(keys...)
	for i := range 6 {
		want := s.distinct() + 100
		eventually(t, func() bool { return s.distinct() >= want }, "it works after %d cuts", i)
		proxy.CutAll()
	}
	s.allInOrder(t, keys, stop())
	if s.repeats != 0 {
		t.Errorf("%d repeats, though the process remembers what it has sent", s.repeats)
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	f := setUp(t, testkit.PG15)
	s := newSink()
	for range 5 {
		stop := f.start(s, f.config())
		f.backlog(3, names("k", 30)...)
		was := s.distinct()
		eventually(t, func() bool { return s.distinct() > was+10 }, "it works")
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	f.close()
	goleak.VerifyNone(t, leaks)
}

// Ids may be issued again after a fail-over: the fence that consumers see differs.
func TestNewTimelineRaisesTheIncarnation(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	f.exec(`UPDATE ` + f.table("outbox_source") + ` SET timeline = '00000009'`)
	f.backlog(1, "k")
	for want := 1; want <= 2; want++ { // once, not with each Run
		stop := f.start(s, f.config())
		eventually(t, func() bool { return s.distinct() == want }, "delivered")
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		f.add("k", want+1, 1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.got {
		if parts := strings.Split(d.Position(), "/"); parts[1] != "2" || parts[2] != fmt.Sprint(d.LogID) {
			t.Errorf("position %q, want incarnation 2", d.Position())
		}
	}
}
