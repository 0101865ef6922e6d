package outbox

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

// script says what a handler returns for an event after it has booked it, and counts.
type script struct {
	e  *effectsTable
	mu sync.Mutex
	// rule may be changed while the handler runs.
	rule  func(key string, n int) error
	calls map[string]int
	all   int
}

func (e *effectsTable) script(rule func(key string, n int) error) *script {
	return &script{e: e, rule: rule, calls: map[string]int{}}
}

func (s *script) handle(ctx context.Context, tx *Tx, m *Message) error {
	n := numberOf(m.Payload)
	s.mu.Lock()
	s.calls[fmt.Sprint(m.Key, "/", n)]++
	s.all++
	rule := s.rule
	s.mu.Unlock()
	if err := s.e.book(ctx, tx, m); err != nil {
		return err
	}
	if rule == nil {
		return nil
	}
	return rule(m.Key, n)
}

func (s *script) follow(rule func(key string, n int) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rule = rule
}

// called is how often the handler was called for an event.
func (s *script) called(key string, n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[fmt.Sprint(key, "/", n)]
}

func (s *script) total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}

// failing gives err for the n-th event of key.
func failing(key string, n int, err error) func(string, int) error {
	return func(k string, i int) error {
		if k == key && i == n {
			return err
		}
		return nil
	}
}

// An event that fails holds up its key, in order, and no other; what it has written
// is gone each time.
func TestFailingEventOfADurableHandlerStopsItsKeyOnly(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 20} {
		t.Run(fmt.Sprint("batch ", batch), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			e := f.effectsTable()
			s := e.script(failing("a", 2, errRefused))
			cfg := f.durableConfig("test")
			cfg.Batch, cfg.Retry.MaxAttempts = batch, 1_000_000
			f.backlog(10, "a", "b", "c")
			f.durable(s.handle, cfg)
			e.reaches(21)
			eventually(t, func() bool { return f.aside() == 9 && s.called("a", 2) > 5 }, "what waits is put aside")
			f.add("a", 11, 1)
			f.add("b", 11, 1)
			e.reaches(22)
			e.expect("a", 1)
			e.expectUpTo(11, "b")
			e.expectUpTo(10, "c")
			if n := s.called("a", 3); n != 0 && batch == 1 {
				t.Errorf("an event behind a failing one was handled %d times", n)
			}
			s.follow(nil)
			e.reaches(32)
			e.expectUpTo(11, "a", "b")
			eventually(t, func() bool { return f.aside() == 0 }, "nothing is put aside any more")
		})
	}
}

// Attempts are counted in the database, so that they go on after a restart.
func TestAttemptsOfADurableHandlerAreBoundedAndSurviveARestart(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{BlockKey, SkipKey} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			e := f.effectsTable()
			s := e.script(failing("a", 1, errRefused))
			cfg := f.durableConfig("test")
			cfg.Policy, cfg.Retry.MaxAttempts = policy, 6
			cfg.Retry.Initial, cfg.Retry.Max = time.Millisecond, time.Millisecond
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			cfg.Hooks.Retried = func(i FailureInfo) {
				if i.Attempts == 3 {
					stop()
				}
			}
			f.backlog(3, "a", "b")
			d, err := NewDurable(f.as(testkit.Relay), s.handle, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Run(ctx); err != nil {
				t.Fatal(err)
			}
			before := s.called("a", 1)
			cfg.Hooks = Hooks{}
			f.durable(s.handle, cfg)
			eventually(t, func() bool { return slices.Contains(f.parkedStates("a"), ParkedGivenUp) }, "given up")
			want := 3 // of b
			if policy == SkipKey {
				want += 2
			}
			e.reaches(want)
			if n := s.called("a", 1); before != 3 || n != 6 {
				t.Errorf("%d attempts, %d before the restart, want 6 and 3", n, before)
			}
			s.follow(nil)
			if err := f.desk().Replay(t.Context(), f.parkedID("a", 1)); err != nil {
				t.Fatal(err)
			}
			e.reaches(6)
			if policy == BlockKey {
				e.expectUpTo(3, "a", "b")
			} else {
				e.expect("a", 2, 3, 1)
			}
		})
	}
}

// ErrPermanent gives an event up at once, ErrNotYet never does: however many keys say
// so one after the other, since neither says that the handler cannot work.
func TestHandlersVerdictOnAnEventIsNoOutage(t *testing.T) {
	t.Parallel()
	for _, verdict := range []error{ErrPermanent, ErrNotYet} {
		for _, batch := range []int{1, 50} {
			t.Run(fmt.Sprint(verdict, "/batch ", batch), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, testkit.PG15)
				e := f.effectsTable()
				bad := names("bad", 3*outageKeys)
				s := e.script(func(key string, n int) error {
					if key[0] == 'b' && n == 1 {
						return fmt.Errorf("version 7: %w", verdict)
					}
					return nil
				})
				f.backlog(2, bad...)
				f.add("good", 1, 1)
				cfg := f.durableConfig("test")
				cfg.Batch, cfg.Retry.MaxAttempts = batch, 3
				f.durable(s.handle, cfg)
				e.reaches(1)
				f.add("good", 2, 1)
				e.reaches(2)
				if verdict == ErrPermanent {
					for _, k := range bad {
						if n := s.called(k, 1); n > 2 || n != 1 && batch == 1 {
							t.Errorf("key %s: tried %d times", k, n)
						}
					}
					if n := f.count(`SELECT count(*) FROM ` + f.table("parked") + ` WHERE state = 'given_up' AND attempts = 1`); n != len(bad) {
						t.Errorf("%d are given up after one attempt, want %d", n, len(bad))
					}
					return
				}
				eventually(t, func() bool { return s.called(bad[0], 1) > 5 && s.called(bad[len(bad)-1], 1) > 5 }, "all are tried on and on")
				if n := f.count(`SELECT count(*) FROM ` + f.table("parked") + ` WHERE attempts > 0`); n != 0 {
					t.Errorf("%d events have counted attempts", n)
				}
				s.follow(nil)
				e.reaches(2*len(bad) + 2)
				e.expectUpTo(2, bad...)
			})
		}
	}
}

// ErrUnavailable, and many keys failing with none in between that does not: an
// outage. Nothing is put aside, no attempt is counted, one event at a time is tried.
func TestOutageOfADurableHandlerPutsNothingAside(t *testing.T) {
	t.Parallel()
	t.Run("by its word", func(t *testing.T) {
		t.Parallel()
		f := setUp(t, testkit.PG15)
		e := f.effectsTable()
		s := e.script(func(string, int) error { return fmt.Errorf("the warehouse: %w", ErrUnavailable) })
		cfg := f.durableConfig("test")
		cfg.Batch = 5
		f.backlog(3, names("k", 20)...)
		f.durable(s.handle, cfg)
		eventually(t, func() bool { return s.total() > 6 }, "it is tried again and again")
		if n := f.aside(); n != 0 {
			t.Errorf("%d events were put aside", n)
		}
		for _, k := range names("k", 20)[5:] {
			if n := s.called(k, 1); n != 0 {
				t.Errorf("key %s was tried %d times meanwhile", k, n)
			}
		}
		s.follow(nil)
		e.reaches(60)
		e.expectUpTo(3, names("k", 20)...)
	})
	t.Run("by many keys", func(t *testing.T) {
		t.Parallel()
		f := setUp(t, testkit.PG15)
		e := f.effectsTable()
		keys := names("k", 3*outageKeys)
		s := e.script(func(string, int) error { return errRefused })
		cfg := f.durableConfig("test")
		cfg.Retry.MaxAttempts = 1000
		cfg.Retry.Initial, cfg.Retry.Max = time.Hour, time.Hour
		f.backlog(3, keys...)
		f.durable(s.handle, cfg)
		eventually(t, func() bool { return s.total() > outageKeys+2 }, "it is tried again and again")
		if n := f.aside(); n != outageKeys-1 {
			t.Errorf("%d events were put aside, want %d: those that failed before it was an outage", n, outageKeys-1)
		}
		if n := s.called(keys[len(keys)-1], 1); n != 0 {
			t.Errorf("the last key was tried %d times in an outage", n)
		}
	})
}

// An outage that an event put aside has begun is probed and ends, also if the round
// ends meanwhile.
func TestOutageThatBeginsBehindTheLogsEndIsProbed(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	var a atomic.Int64
	cfg := f.durableConfig("test")
	cfg.Retry.Initial, cfg.Retry.Max = 400*time.Millisecond, 400*time.Millisecond
	f.backlog(1, "a", "b")
	f.durable(func(ctx context.Context, tx *Tx, m *Message) error {
		if m.Key == "b" && numberOf(m.Payload) == 1 { // for so long that a is due before the round is finished
			if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.7)`); err != nil {
				return err
			}
		}
		if m.Key == "a" {
			switch a.Add(1) {
			case 1:
				return errRefused
			case 2:
				return ErrUnavailable
			}
		}
		return e.book(ctx, tx, m)
	}, cfg)
	e.reaches(2)
	f.add("b", 2, 1)
	e.reaches(3)
	e.expectUpTo(2, "b")
	e.expectUpTo(1, "a")
}

// All that may be put aside is put aside, and the next event of the log waits behind
// a failing one: what has failed is tried again all the same, in an outage too.
func TestOutageWithAsMuchPutAsideAsMayBeEnds(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	keys := names("k", 3*outageKeys)
	s := e.script(func(key string, _ int) error {
		if key[0] == 'g' {
			return nil
		}
		return errRefused
	})
	cfg := f.durableConfig("test")
	cfg.MaxParked, cfg.Retry.MaxAttempts = outageKeys+4, 1000
	for _, k := range keys[:outageKeys+4] { // between two that fail one that does not: no outage yet
		f.backlog(1, k, "good "+k)
	}
	f.backlogFrom(2, 1, keys[0])
	f.backlog(1, keys[outageKeys+4:]...)
	f.durable(s.handle, cfg)
	eventually(t, func() bool { return f.aside() == outageKeys+4 && s.total() > 4*outageKeys }, "it is full")
	if n := s.called(keys[0], 2) + s.called(keys[outageKeys+4], 1); n != 0 {
		t.Errorf("what lies behind was tried %d times", n)
	}
	s.follow(nil)
	e.reaches(len(keys) + 1 + outageKeys + 4)
	e.expectUpTo(2, keys[0])
	e.expectUpTo(1, keys[1:]...)
}

// A long queue behind an event that has failed does not hold up other keys while it
// is worked off, either.
func TestQueueThatIsFreedLetsOtherKeysThrough(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	s := e.script(failing("a", 1, errRefused))
	cfg := f.durableConfig("test")
	cfg.Retry.MaxAttempts, cfg.PollInterval = 1_000_000, 10*time.Millisecond
	f.backlog(400, "a")
	f.add("b", 1, 1)
	f.durable(s.handle, cfg)
	eventually(t, func() bool { return f.aside() == 400 && e.count() == 1 }, "the queue stands")
	s.follow(nil)
	eventually(t, func() bool { return e.count() > 5 }, "the queue moves")
	f.add("b", 2, 1)
	e.reaches(402)
	e.expectUpTo(400, "a")
	if behind := f.count(`SELECT count(*) FROM ` + e.name + ` WHERE key = 'a' AND seq > (SELECT seq FROM ` + e.name + ` WHERE key = 'b' AND n = 2)`); behind < 50 {
		t.Errorf("another key's event came when only %d of the queue were left", behind)
	}
}

// No more is put aside than may be: then the log waits, without the handler being
// called over and over, until one gets through or a person decides.
func TestDurableHandlerStopsWhenTooMuchIsPutAside(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"events", "bytes"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			f := setUp(t, testkit.PG15)
			e := f.effectsTable()
			s := e.script(failing("a", 1, ErrPermanent))
			cfg := f.durableConfig("test")
			cfg.Batch = 20
			if by == "events" {
				cfg.MaxParked = 8
			} else {
				cfg.MaxParkedBytes = 8 * int64(sizeOf(t, event("a", 10)))
			}
			f.backlog(100, "a")
			f.add("b", 1, 5)
			f.durable(s.handle, cfg)
			eventually(t, func() bool { return f.aside() >= 8 }, "it is full")
			looks := f.count(`SELECT count(*) FROM ` + f.table("relay_link"))
			calls := s.total()
			eventually(t, func() bool {
				return f.aside() >= 8 && f.count(`SELECT count(*) FROM `+f.table("relay_lease")+` WHERE expires > clock_timestamp() + interval '1 second'`) == 1
			}, "a lease later")
			if n := f.aside(); n > 9 {
				t.Errorf("%d events are put aside, want 8", n)
			}
			if n := e.count(); n != 0 {
				t.Errorf("%d effects", n)
			}
			if more := s.total() - calls; more > 3 {
				t.Errorf("the handler was called %d times", more)
			}
			if more := f.count(`SELECT count(*) FROM `+f.table("relay_link")) - looks; more > 3 {
				t.Errorf("%d links were written", more)
			}
			if err := f.desk().Discard(t.Context(), f.parkedID("a", 1)); err != nil {
				t.Fatal(err)
			}
			e.reaches(99 + 5)
			e.expectUpTo(5, "b")
			if got := e.of("a"); got[0] != 2 || !slices.IsSorted(got) || len(got) != 99 {
				t.Errorf("effects of a: %v", got)
			}
		})
	}
}

func sizeOf(t *testing.T, e events.DomainEvent) int {
	t.Helper()
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// A run of events that fail by themselves, of as many keys as look like an outage,
// does not keep those behind it from being handled.
func TestManyBadEventsDoNotStopTheGoodOnesForEver(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	bad := names("bad", 3*outageKeys)
	s := e.script(func(key string, _ int) error {
		if key[0] == 'b' {
			return errRefused
		}
		return nil
	})
	cfg := f.durableConfig("test")
	cfg.Retry.MaxAttempts = 3
	f.backlog(2, bad...)
	f.backlog(10, "good")
	f.durable(s.handle, cfg)
	testkit.Eventually(t, 60*time.Second, func() bool { return e.count() == 10 }, "the good ones are handled")
	e.expectUpTo(10, "good")
}
