package outbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
)

// Paused, limited, rewound and sent ahead from the desk, as a relay is.
func TestDurableHandlerIsSteered(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG18)
	e := f.effectsTable()
	cfg := f.durableConfig("test")
	cfg.Batch = 3
	f.durable(e.book, cfg)
	d, ctx := f.desk(), t.Context()
	f.add("a", 1, 5)
	e.reaches(5)

	f.carriedOut(func() (RequestID, error) { return d.Pause(ctx) })
	f.add("a", 6, 5)
	f.carriedOut(func() (RequestID, error) { return d.SetRate(ctx, 20) })
	if n := e.count(); n != 5 {
		t.Errorf("%d events were handled while it was paused", n-5)
	}
	began := time.Now()
	f.carriedOut(func() (RequestID, error) { return d.Resume(ctx) })
	e.reaches(10)
	if took := time.Since(began); took < 150*time.Millisecond { // five at 20/s
		t.Errorf("five events at 20 a second took %s", took)
	}
	f.carriedOut(func() (RequestID, error) { return d.Unlimited(ctx) })
	f.carriedOut(func() (RequestID, error) { return d.SetTypes(ctx, "stock.*") })
	f.add("left out", 1, 1)
	passed := f.count(`SELECT max(id) FROM ` + f.table("outbox"))
	eventually(t, func() bool { return f.count(`SELECT max(last_id) FROM `+f.table("relay_link")) >= passed }, "it has passed what it does not let through")
	f.carriedOut(func() (RequestID, error) { return d.AllTypes(ctx) })

	// What is open when it is sent ahead is left out, too.
	open := f.begin(f.session(testkit.PG18))
	f.append(open, event("late", 1))
	f.carriedOut(func() (RequestID, error) { return d.Pause(ctx) })
	f.add("a", 11, 3)
	end := int64(f.count(`SELECT max(id) FROM ` + f.table("outbox")))
	f.carriedOut(func() (RequestID, error) { return d.SkipTo(ctx, end+1) })
	f.carriedOut(func() (RequestID, error) { return d.Resume(ctx) })
	f.commit(open)
	f.add("a", 14, 1)
	e.reaches(11)
	f.add("a", 15, 1)
	e.reaches(12)
	e.expect("a", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15)
	e.expect("late")
	e.expect("left out")

	// A projection that is emptied and built anew.
	f.carriedOut(func() (RequestID, error) { return d.Pause(ctx) })
	f.exec(`DELETE FROM ` + e.name)
	f.carriedOut(func() (RequestID, error) { return d.RewindTo(ctx, 1) })
	f.carriedOut(func() (RequestID, error) { return d.Resume(ctx) })
	e.reaches(17)
	e.expectUpTo(15, "a")
	e.expectUpTo(1, "late", "left out")
}

// A projection is built anew while events are put aside: those come in their place,
// once, though the process is restarted in the middle, and nothing that was discarded comes.
func TestProjectionIsRebuiltWithEventsPutAside(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{BlockKey, SkipKey} {
		for _, batch := range []int{1, 20} {
			t.Run(fmt.Sprint("policy ", policy, "/batch ", batch), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, testkit.PG15)
				e := f.effectsTable()
				keys := names("k", 6)
				// Failing, given up, given up and discarded.
				bad := func(key string, n int) error {
					switch {
					case key == "k0" && n == 3:
						return errRefused
					case key == "k1" && n == 3, key == "k2" && n == 3:
						return ErrPermanent
					}
					return nil
				}
				s := e.script(bad)
				cfg := f.durableConfig("test")
				cfg.Policy, cfg.Batch, cfg.Retry.MaxAttempts = policy, batch, 1_000_000
				f.backlog(8, keys...)
				stop := f.durable(s.handle, cfg)
				aside := map[Policy]int{BlockKey: 6 + 6, SkipKey: 6 + 1}[policy]
				eventually(t, func() bool { return s.called("k2", 3) > 0 && s.called("k0", 3) > 3 }, "they fail")
				eventually(t, func() bool {
					return f.count(`SELECT count(*) FROM `+f.table("parked")+` WHERE state = 'given_up'`) == 2
				}, "given up")
				if err := f.desk().Discard(t.Context(), f.parkedID("k2", 3)); err != nil {
					t.Fatal(err)
				}
				eventually(t, func() bool {
					return f.aside() == aside && f.count(`SELECT count(*) FROM `+f.table("parked")+` WHERE partition_key = 'k2' AND state <> 'discarded'`) == 0
				}, "discarded")
				d, ctx := f.desk(), t.Context()
				f.carriedOut(func() (RequestID, error) { return d.Pause(ctx) })
				f.exec(`DELETE FROM ` + e.name)
				s.follow(func(key string, n int) error { // the first restart in the middle
					if key == "k1" && n == 3 {
						return ErrPermanent
					}
					return nil
				})
				f.carriedOut(func() (RequestID, error) { return d.RewindTo(ctx, 1) })
				f.carriedOut(func() (RequestID, error) { return d.SetRate(ctx, 30) })
				f.carriedOut(func() (RequestID, error) { return d.Resume(ctx) })
				e.reaches(8)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				f.durable(s.handle, cfg)
				f.carriedOut(func() (RequestID, error) { return d.SetRate(ctx, 60) })
				e.reaches(20)
				f.carriedOut(func() (RequestID, error) { return d.Unlimited(ctx) })
				all := 6*8 - 2 // but for the discarded and the given up
				if policy == BlockKey {
					all -= 5 // behind that
				}
				e.reaches(all)
				s.follow(nil)
				if err := d.Replay(ctx, f.parkedID("k1", 3)); err != nil {
					t.Fatal(err)
				}
				eventually(t, func() bool { return f.aside() == 0 }, "nothing is put aside")
				e.reaches(6*8 - 1)
				e.expectUpTo(8, "k0", "k3", "k4", "k5")
				e.expect("k2", 1, 2, 4, 5, 6, 7, 8)
				if policy == BlockKey {
					e.expectUpTo(8, "k1")
				} else {
					e.expect("k1", 1, 2, 4, 5, 6, 7, 8, 3)
				}
			})
		}
	}
}

// Dropped while its process is frozen: it does not go on from a position that is gone.
func TestFrozenDurableHandlerThatWasDropped(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	spec := durableSpec{Database: testkit.AddressOf(f.as(testkit.Relay)), Schema: f.schema, Point: fpBeforeEffects, Hit: 5, Freeze: true,
		Batch: 1, Lease: time.Second}
	f.backlog(10, "k9")
	child := spec.startChild(t)
	eventually(t, func() bool { return strings.Contains(child.Output(), freezes) }, "it is frozen")
	handled := e.count()
	eventually(t, func() bool {
		err := f.desk().Drop(t.Context(), DropConfig{})
		if err != nil && !errors.Is(err, ErrRunning) {
			t.Fatal(err)
		}
		return err == nil
	}, "it is dropped, when its lease has run out")
	child.Cont()
	if err := child.Wait(20 * time.Second); err == nil {
		t.Error("it ended as if nothing had happened")
	}
	if out := child.Output(); !strings.Contains(out, ErrDropped.Error()) {
		t.Errorf("it said\n%s", out)
	}
	e.expectUpTo(handled, "k9")
}

// Names of relays and handlers are one space.
func TestDurableHandlerAndRelayCannotShareAName(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	f.backlog(1, "a")
	s := newSink()
	stop := f.start(s, f.config())
	eventually(t, func() bool { return s.distinct() == 1 }, "the relay has run")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	d, err := NewDurable(f.as(testkit.Relay), e.book, f.durableConfig("test"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); !errors.Is(err, ErrNameTaken) {
		t.Errorf("the handler: %v", err)
	}
	f.durable(e.book, f.durableConfig("other"))
	e.reaches(1)
	cfg := f.config()
	cfg.Name = "other"
	relay, err := NewRelay(f.as(testkit.Relay), s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := relay.Run(t.Context()); !errors.Is(err, ErrNameTaken) {
		t.Errorf("the relay: %v", err)
	}
}

// Where a new name begins.
func TestDurableHandlerBeginsWhereItIsTold(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	e := f.effectsTable()
	f.add("a", 1, 3)
	f.exec(`UPDATE ` + f.table("outbox") + ` SET at = at - interval '1 hour' WHERE id <= 2`)
	open := f.begin(f.session(testkit.PG15))
	f.append(open, event("late", 1))
	for _, c := range []struct {
		at   StartAt
		want string
	}{{FromNow, "[4]"}, {FromTime(time.Now().Add(-30 * time.Minute)), "[3 4]"}, {FromBeginning, "[1 2 3 4]"}} {
		f.exec(`DELETE FROM ` + e.name)
		cfg := f.durableConfig(fmt.Sprint("at-", len(c.want)))
		cfg.StartAt = c.at
		active := make(chan struct{})
		cfg.Hooks.LeaseWon = func(LeaseInfo) { close(active) }
		stop := f.durable(e.book, cfg)
		<-active
		eventually(t, func() bool {
			return f.count(`SELECT count(*) FROM `+f.table("relay_link")+` WHERE relay = $1`, cfg.Name) > 0
		}, "it has a position")
		if c.at == FromNow {
			f.add("a", 4, 1)
		}
		eventually(t, func() bool { return fmt.Sprint(e.of("a")) == c.want }, "%s are handled, have %v", c.want, e.of("a"))
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	f.commit(open)
	for _, name := range []string{"at-3", "at-5"} { // what commits late comes to all
		f.exec(`DELETE FROM ` + e.name)
		stop := f.durable(e.book, f.durableConfig(name))
		e.reaches(1)
		e.expectUpTo(1, "late")
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
}
