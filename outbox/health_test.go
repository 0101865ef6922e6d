package outbox

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func newTestHealth(t *testing.T) (*health, *book, *int) {
	b, woken := newBook(t), 0
	return newHealth(slog.New(b), func() { woken++ }), b, &woken
}

func failedKeys(n int) (keys []laneKey) {
	for i := range n {
		keys = append(keys, laneKey{"t", fmt.Sprint(i)})
	}
	return keys
}

func TestOutageIsManyKeysWithNothingAcceptedBetween(t *testing.T) {
	t.Parallel()
	h, b, _ := newTestHealth(t)
	now := time.Now()
	if !h.report(now, false, 0, failedKeys(outageKeys-1), false) || !h.report(now, false, 0, failedKeys(1), false) {
		t.Error("fewer keys, or the same ones again, are no outage: their failures count")
	}
	h.report(now, false, 1, nil, false)
	if !h.report(now, false, 0, failedKeys(outageKeys)[outageKeys-1:], false) {
		t.Error("an accepted event starts the count anew")
	}
	if !h.report(now, false, 1, failedKeys(100), false) {
		t.Error("a call that had something accepted is no outage")
	}
	if h.report(now, false, 0, failedKeys(outageKeys), false) {
		t.Error("that many are one, and no attempt is counted")
	}
	if b.times("accepts nothing") != 1 {
		t.Errorf("said: %v", b.said)
	}
}

// While the broker is down one call at a time probes, at a growing pace.
func TestOutageIsProbedByOneCallAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, b, woken := newTestHealth(t)
		if a := h.admit(time.Now()); a != (admission{}) {
			t.Fatalf("up: %+v", a)
		}
		h.report(time.Now(), false, 0, failedKeys(1), true)
		start, probes := time.Now(), 0
		for time.Since(start) < time.Minute {
			a := h.admit(time.Now())
			if a.wait > 0 {
				time.Sleep(a.wait) // the bubble's clock
				continue
			}
			if !a.probe || a.fresh {
				t.Fatalf("got %+v", a)
			}
			if second := h.admit(time.Now()); second.probe || second.wait <= 0 {
				t.Fatalf("a second probe: %+v", second)
			}
			probes++
			if h.report(time.Now(), true, 0, failedKeys(1), true) {
				t.Fatal("counted")
			}
		}
		if probes < 12 || probes > 40 {
			t.Errorf("%d probes in a minute", probes)
		}
		if h.accepts(start) {
			t.Error("nothing was accepted")
		}
		was := *woken
		if !h.report(time.Now(), true, 1, nil, false) || h.admit(time.Now()) != (admission{}) || *woken <= was || !h.accepts(start) {
			t.Error("it accepts again: all lanes are woken, and go")
		}
		if b.times("accepts nothing") != 1 || b.times("accepts events again") != 1 {
			t.Errorf("said: %v", b.said)
		}
	})
}

func TestUnusedProbeIsGivenBack(t *testing.T) {
	t.Parallel()
	h, _, _ := newTestHealth(t)
	now := time.Now()
	h.report(now, false, 0, failedKeys(1), true)
	now = now.Add(time.Hour)
	if !h.admit(now).probe {
		t.Fatal("no probe")
	}
	h.unused()
	if !h.admit(now).probe {
		t.Error("the leave was lost")
	}
}

// Only what was tried says anything: nothing may be parked in an outage that the
// publisher itself has told of, whatever comes back after it.
func TestOutageToldByThePublisherLastsUntilSomethingIsAccepted(t *testing.T) {
	t.Parallel()
	h, _, _ := newTestHealth(t)
	now := time.Now()
	told := func() bool { _, told := h.verdict(); return told }
	h.report(now, false, 0, failedKeys(1), true)
	h.report(now, true, 0, nil, false)
	if !told() {
		t.Error("a probe that sent nothing has ended it")
	}
	h.report(now, false, 0, failedKeys(2), false)
	if !told() {
		t.Error("a call left over from before, with an error of its own, has ended it")
	}
	h.report(now, false, 1, nil, false)
	if told() {
		t.Error("accepted, and still down")
	}
	h.report(now, false, 0, failedKeys(outageKeys), false)
	if told() {
		t.Error("the next outage is not told by the publisher")
	}
}
