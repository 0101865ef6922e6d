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
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

const soon = 20 * time.Second // for conditions: generous, the machine may be busy

// book is a logger that counts its messages.
type book struct {
	slog.Handler
	mu   sync.Mutex
	said map[string]int
}

func newBook(t testing.TB) *book {
	return &book{Handler: testLogger(t).Handler(), said: map[string]int{}}
}

func (b *book) Handle(ctx context.Context, r slog.Record) error {
	b.mu.Lock()
	b.said[r.Message]++
	b.mu.Unlock()
	return b.Handler.Handle(ctx, r)
}

// WithAttrs keeps one book, whoever logs.
func (b *book) WithAttrs([]slog.Attr) slog.Handler { return b }

// times is how often a message was logged that contains part.
func (b *book) times(part string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for m, times := range b.said {
		if strings.Contains(m, part) {
			n += times
		}
	}
	return n
}

// backlog appends, in one transaction, n events to each key in turns.
func (f *fixture) backlog(n int, keys ...string) {
	f.t.Helper()
	var evs []events.DomainEvent
	for i := range n {
		for _, k := range keys {
			evs = append(evs, event(k, i+1))
		}
	}
	f.tx(func(tx pgx.Tx) error { return f.log.Append(f.t.Context(), tx, evs...) })
}

func (f *fixture) desk() *Desk {
	f.t.Helper()
	d, err := NewDesk(f.as(testkit.Admin), "test", DeskConfig{Schema: f.schema})
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

// parkedStates gives the states of a key's parked rows, in order.
func (f *fixture) parkedStates(key string) (states []ParkedState) {
	f.t.Helper()
	all, err := f.desk().Parked(context.Background(), ParkedFilter{}, 0, 10_000)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range all {
		if e.Key == key {
			states = append(states, e.State)
		}
	}
	return states
}

// parkedID gives the log id of the n-th event of a key.
func (f *fixture) parkedID(key string, n int) (id int64) {
	f.t.Helper()
	if err := f.pool.QueryRow(context.Background(), `SELECT id FROM `+f.table("outbox")+` WHERE partition_key = $1 ORDER BY id OFFSET $2 LIMIT 1`,
		key, n-1).Scan(&id); err != nil {
		f.t.Fatal(err)
	}
	return id
}

func eventually(t testing.TB, cond func() bool, what ...any) {
	t.Helper()
	testkit.Eventually(t, soon, cond, what...)
}

// calls counts the attempts on one event.
type calls struct{ n atomic.Int64 }

// refuse is a rule that gives r for the n-th event of key, counting.
func (c *calls) refuse(key string, n int, r Result) func(*Message, int) Result {
	return func(m *Message, at int) Result {
		if m.Key == key && at == n {
			c.n.Add(1)
			return r
		}
		return Result{Status: Done}
	}
}

var contracts = map[string]BatchContract{
	"stops at first failure": {StopsKeyAtFirstFailure: true},
	"one per key":            {},
}

func names(prefix string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint(prefix, i))
	}
	return all
}

// However long the queue behind a failing event and however small the window.
func TestFailingEventStopsItsKeyOnly(t *testing.T) {
	t.Parallel()
	for name, contract := range contracts {
		for _, window := range []int{1, 8, 1000} {
			t.Run(fmt.Sprint(name, "/window ", window), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, testkit.PG15)
				s, c := newSink(), calls{}
				s.contract = contract
				s.setRule(c.refuse("bad", 1, Result{Passing, errRefused}))
				f.backlog(150, "bad")
				f.backlog(30, names("good", 4)...)
				cfg := f.config()
				cfg.Window, cfg.Retry.MaxAttempts = window, 1_000_000
				f.start(s, cfg)
				eventually(t, func() bool { return s.distinct() == 120 }, "the other keys flow")
				f.backlog(1, "later")
				eventually(t, func() bool { return s.distinct() == 121 }, "what comes later flows too")
				if got := s.of("bad"); len(got) > 0 {
					t.Errorf("delivered behind a failing event: %v", got)
				}
				eventually(t, func() bool { return len(f.parkedStates("bad")) == 150 }, "the key is put aside")
				states := f.parkedStates("bad")
				if states[0] != ParkedRetrying || slices.ContainsFunc(states[1:], func(s ParkedState) bool { return s != ParkedWaiting }) {
					t.Errorf("states %v, want retrying and then all waiting", states)
				}
				s.setRule(nil)
				eventually(t, func() bool { return s.distinct() == 271 }, "the key goes on")
				s.inOrder(t, "bad", 150)
				eventually(t, func() bool { return len(f.parkedStates("bad")) == 0 }, "nothing stays parked")
				if s.repeats != 0 {
					t.Errorf("%d repeats", s.repeats)
				}
			})
		}
	}
}

func TestEventsOfOtherKeysFlowWhenAllElseFails(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, c := newSink(), calls{}
	s.setRule(c.refuse("bad", 1, Result{Passing, errRefused}))
	cfg := f.config()
	cfg.Retry.MaxAttempts = 1_000_000
	f.start(s, cfg)
	f.backlog(1, "bad")
	eventually(t, func() bool { return c.n.Load() > 0 }, "it fails")
	f.add("good", 1, 5)
	eventually(t, func() bool { return len(s.of("good")) == 5 }, "the others flow")
}

func TestPermanentErrorIsGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{BlockKey, SkipKey} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			s, c := newSink(), calls{}
			s.setRule(c.refuse("bad", 2, Result{Permanent, errors.New("too large \x00 for this broker")}))
			cfg := f.config()
			cfg.Policy = policy
			f.backlog(5, "bad", "good")
			f.start(s, cfg)
			id := f.parkedID("bad", 2)
			eventually(t, func() bool { e, err := f.desk().Get(t.Context(), id); return err == nil && e.State == ParkedGivenUp }, "given up")
			e, err := f.desk().Get(t.Context(), id)
			if err != nil || e.Attempts != 1 || e.LastError != "too large   for this broker" || e.Key != "bad" || e.Topic != "order" || e.Bytes == 0 {
				t.Errorf("got %+v, %v", e, err)
			}
			want := []int{1}
			if policy == SkipKey {
				want = []int{1, 3, 4, 5}
			} else {
				eventually(t, func() bool { return len(f.parkedStates("bad")) == 4 }, "the rest waits")
			}
			eventually(t, func() bool { return len(s.of("good")) == 5 && slices.Equal(s.of("bad"), want) }, "the keys go as far as they may")
			f.add("good", 6, 1)
			eventually(t, func() bool { return len(s.of("good")) == 6 }, "the stream runs on")
			if got := s.of("bad"); !slices.Equal(got, want) || c.n.Load() != 1 {
				t.Errorf("delivered %v, want %v; tried %d times, want once", got, want, c.n.Load())
			}
		})
	}
}

func TestAttemptsAreBoundedAndSurviveARestart(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, c := newSink(), calls{}
	s.setRule(c.refuse("bad", 1, Result{Passing, errRefused}))
	cfg := f.config()
	cfg.Retry = RetryConfig{Initial: 20 * time.Millisecond, Max: 200 * time.Millisecond, MaxAttempts: 9}
	f.backlog(2, "bad")
	stop := f.start(s, cfg)
	id := f.parkedID("bad", 1)
	eventually(t, func() bool { e, err := f.desk().Get(t.Context(), id); return err == nil && e.Attempts >= 3 }, "parked")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	before := c.n.Load()
	if e, err := f.desk().Get(t.Context(), id); err != nil || int64(e.Attempts) != before || e.State != ParkedRetrying {
		t.Fatalf("after a clean stop and %d attempts: %+v, %v", before, e, err)
	}
	f.start(s, cfg)
	eventually(t, func() bool { e, err := f.desk().Get(t.Context(), id); return err == nil && e.State == ParkedGivenUp }, "given up")
	if e, _ := f.desk().Get(t.Context(), id); c.n.Load() != 9 || e.Attempts != 9 || e.LastError != errRefused.Error() {
		t.Errorf("tried %d times: %+v", c.n.Load(), e)
	}
	if got := f.parkedStates("bad"); !slices.Equal(got, []ParkedState{ParkedGivenUp, ParkedWaiting}) {
		t.Errorf("states %v", got)
	}
}

func TestBrokerDownParksNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		keys int
	}{
		"said by the publisher, one key":   {fmt.Errorf("dial: %w", ErrUnavailable), 1},
		"said by the publisher, many keys": {fmt.Errorf("dial: %w", ErrUnavailable), 50},
		"seen by many keys that fail":      {errors.New("EOF"), 50},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			s := newSink()
			var tried atomic.Int64
			s.setRule(func(*Message, int) Result { tried.Add(1); return Result{Passing, test.err} })
			keys := names("k", test.keys)
			f.backlog(4, keys...)
			cfg, b := f.config(), newBook(t)
			cfg.Logger, cfg.Window, cfg.Retry.MaxAttempts = slog.New(b), 64, 2
			f.start(s, cfg)
			first := int64(0)
			eventually(t, func() bool {
				if first == 0 && b.times("accepts nothing") == 1 {
					first = tried.Load()
				}
				return first > 0 && tried.Load() >= first+3
			}, "it is found down, and probed")
			if n := f.count(`SELECT count(*) FROM ` + f.table("parked")); n != 0 {
				t.Errorf("%d events were parked", n)
			}
			s.setRule(nil)
			eventually(t, func() bool { return s.distinct() == 4*test.keys }, "all is delivered")
			for _, k := range keys {
				s.inOrder(t, k, 4)
			}
			if down, up := b.times("accepts nothing"), b.times("accepts events again"); down != 1 || up != 1 {
				t.Errorf("said %d times that it is down and %d times that it is back", down, up)
			}
			if n := f.count(`SELECT count(*) FROM ` + f.table("parked")); n != 0 {
				t.Errorf("%d events are parked", n)
			}
		})
	}
}

func TestUnknownOutcomeIsTriedFirstAndNeverGivenUp(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s, c := newSink(), calls{}
	s.setRule(c.refuse("bad", 1, Result{Unknown, context.DeadlineExceeded}))
	cfg := f.config()
	cfg.Retry.MaxAttempts = 2
	f.backlog(4, "bad", "good")
	f.start(s, cfg)
	eventually(t, func() bool { return c.n.Load() >= 12 && len(s.of("good")) == 4 }, "it is tried on and on")
	if got := s.of("bad"); len(got) > 0 {
		t.Errorf("delivered before it: %v", got)
	}
	if slices.Contains(f.parkedStates("bad"), ParkedGivenUp) {
		t.Error("given up")
	}
	s.setRule(nil)
	eventually(t, func() bool { return len(s.of("bad")) == 4 }, "the key goes on")
	s.inOrder(t, "bad", 4)
}

// A replay goes through its key's lane; only under SkipKey is it out of order, and says so.
func TestReplayGoesOnInTheKeysLane(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{BlockKey, SkipKey} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			s, c := newSink(), calls{}
			s.setRule(c.refuse("bad", 2, Result{Permanent, errRefused}))
			cfg := f.config()
			cfg.Policy = policy
			f.backlog(4, "bad")
			f.start(s, cfg)
			id := f.parkedID("bad", 2)
			givenUp := func() bool { e, err := f.desk().Get(t.Context(), id); return err == nil && e.State == ParkedGivenUp }
			eventually(t, givenUp, "given up")
			if err := f.desk().Replay(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() bool {
				e, err := f.desk().Get(t.Context(), id)
				return err == nil && e.Replays == 1 && c.n.Load() == 2 && givenUp()
			}, "tried, and given up again")
			s.setRule(nil)
			if err := f.desk().Replay(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() bool { return len(s.of("bad")) == 4 }, "delivered")
			eventually(t, func() bool { return len(f.parkedStates("bad")) == 0 }, "nothing stays parked")
			f.add("bad", 5, 1)
			eventually(t, func() bool { return len(s.of("bad")) == 5 }, "the key flows")
			if policy == BlockKey {
				s.inOrder(t, "bad", 5)
			} else if got := s.of("bad"); !slices.Equal(got, []int{1, 3, 4, 2, 5}) {
				t.Errorf("delivered %v", got)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, d := range s.got {
				if replayed := d.Headers[events.HeaderReplayed] == "true"; replayed != (policy == SkipKey && d.n == 2) {
					t.Errorf("event %d: header of a replay: %v", d.n, replayed)
				}
			}
		})
	}
}

// Whatever its state: the key goes on without it.
func TestDiscardedEventIsNeverSentAndItsKeyGoesOn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		result  Result
		state   ParkedState
		discard int
		want    []int
	}{
		"given up": {Result{Permanent, errRefused}, ParkedGivenUp, 1, []int{2, 3, 4}},
		"retrying": {Result{Passing, errRefused}, ParkedRetrying, 1, []int{2, 3, 4}},
		"waiting":  {Result{Passing, errRefused}, ParkedWaiting, 3, []int{1, 2, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			s, c := newSink(), calls{}
			s.setRule(c.refuse("bad", 1, test.result))
			cfg := f.config()
			cfg.Retry.MaxAttempts = 1_000_000
			f.backlog(4, "bad")
			stop := f.start(s, cfg)
			id := f.parkedID("bad", test.discard)
			eventually(t, func() bool { e, err := f.desk().Get(t.Context(), id); return err == nil && e.State == test.state }, "parked")
			if err := f.desk().Discard(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			discarded := func() bool { e, err := f.desk().Get(t.Context(), id); return err == nil && e.State == ParkedDiscarded }
			eventually(t, discarded, "discarded")
			if test.discard != 1 {
				s.setRule(nil)
			}
			eventually(t, func() bool { return slices.Equal(s.of("bad"), test.want) }, "the key goes on")
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			s.setRule(nil)
			f.start(s, cfg) // a successor knows of it
			f.add("bad", 5, 1)
			eventually(t, func() bool { return slices.Equal(s.of("bad"), append(test.want, 5)) }, "got %v", s.of("bad"))
			if !discarded() {
				t.Error("its row is kept so that a rewind does not send it")
			}
		})
	}
}

// What the chain of a killed holder left parked blocks the key for its successor.
func TestParkedRowsBlockTheirKeyForTheNextHolder(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{BlockKey, SkipKey} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			s, c := newSink(), calls{}
			s.setRule(c.refuse("bad", 1, Result{Permanent, errRefused}))
			cfg := f.config()
			cfg.Policy = policy
			f.backlog(1, "bad")
			stop := f.start(s, cfg)
			eventually(t, func() bool { return len(f.parkedStates("bad")) == 1 }, "parked")
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			s.setRule(nil)
			f.add("bad", 2, 2)
			f.start(s, cfg)
			f.add("good", 1, 1)
			eventually(t, func() bool { return len(s.of("good")) == 1 }, "other keys flow")
			want := []int{2, 3}
			if policy == BlockKey {
				want = nil
				eventually(t, func() bool { return len(f.parkedStates("bad")) == 3 }, "the key waits")
			}
			eventually(t, func() bool { return slices.Equal(s.of("bad"), want) }, "got %v", s.of("bad"))
		})
	}
}

// An event may be out of attempts the moment after it was put aside: it is given up
// when that is written, no sooner, and then under SkipKey its key goes on.
func TestGivenUpRightAfterItWasParked(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	s := newSink()
	s.setRule(func(m *Message, n int) Result {
		if n == 2 && m.Key < "k2" { // of 60 keys 0, 1 and 10 to 19
			return Result{Passing, errRefused}
		}
		return Result{Status: Done}
	})
	cfg := f.config()
	cfg.Policy, cfg.Window = SkipKey, 40
	cfg.Retry = RetryConfig{Initial: time.Millisecond, Max: 3 * time.Millisecond, MaxAttempts: 5}
	keys := names("k", 60)
	f.backlog(6, keys...)
	f.start(s, cfg)
	eventually(t, func() bool { return s.distinct() == 60*6-12 }, "all keys go on")
	eventually(t, func() bool {
		return f.count(`SELECT count(*) FROM `+f.table("parked")+` WHERE state = 'given_up' AND attempts = 5`) == 12
	}, "all of them are given up")
	if n := f.count(`SELECT count(*) FROM ` + f.table("parked")); n != 12 {
		t.Errorf("%d are parked", n)
	}
}
