package outbox

import (
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// outageKeys is how many different keys must fail, with nothing accepted between
// them, to be an outage whatever the errors say.
const outageKeys = 16

// health tells an event that fails from a broker that is down. While it is down
// one call at a time probes, with one event, and no attempt is counted.
type health struct {
	log     *slog.Logger
	wakeAll func()

	ofHandler bool // of a durable handler, and not of a broker

	mu          sync.Mutex
	failing     map[laneKey]struct{} // since the last event that was accepted
	down        bool
	unavailable bool // by the publisher's own word, in the last call that failed
	told        bool // the publisher has said so since the broker accepted something
	since       time.Time
	probing     bool
	next        time.Time // of the next probe
	pace        *backoff.ExponentialBackOff
	lastDone    time.Time
}

func newHealth(log *slog.Logger, wakeAll func()) *health {
	pace := backoff.NewExponentialBackOff()
	pace.InitialInterval, pace.MaxInterval, pace.Multiplier = 100*time.Millisecond, 5*time.Second, 2
	return &health{log: log, wakeAll: wakeAll, failing: map[laneKey]struct{}{}, pace: pace}
}

// admission says what a lane may send now.
type admission struct {
	wait  time.Duration // > 0: nothing, ask again then
	probe bool          // one event
	fresh bool          // preferably one that has not been tried: it tells more
}

func (h *health) admit(now time.Time) admission {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.down:
		return admission{}
	case h.probing:
		return admission{wait: time.Second} // woken by its end
	case now.Before(h.next):
		return admission{wait: h.next.Sub(now)}
	}
	h.probing = true
	return admission{probe: true, fresh: !h.unavailable}
}

// report takes the outcome of one call and says whether its failures count as attempts.
func (h *health) report(now time.Time, wasProbe bool, done int, failed []laneKey, unavailable bool) (counts bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if wasProbe {
		h.probing = false
	}
	if done > 0 {
		h.lastDone = now
		clear(h.failing)
		if h.down {
			h.down, h.unavailable, h.told = false, false, false
			text := "the broker accepts events again"
			if h.ofHandler {
				text = "the handler gets events done again"
			}
			h.log.Info(text, "after", now.Sub(h.since).Round(time.Millisecond))
			h.wakeAll()
		}
		return !unavailable
	}
	for _, k := range failed {
		h.failing[k] = struct{}{}
	}
	if !h.down && (unavailable || len(h.failing) >= outageKeys) {
		h.down, h.since = true, now
		h.pace.Reset()
		text := "the broker accepts nothing: events wait, none is parked, one at a time is tried"
		if h.ofHandler {
			text = "the handler gets nothing done: events wait, none is put aside, one at a time is tried"
		}
		h.log.Warn(text, "keys_failing", len(h.failing), "unavailable", unavailable)
	}
	if h.down {
		if len(failed) > 0 { // a call that tried nothing says nothing
			h.unavailable, h.told = unavailable, h.told || unavailable
		}
		if wasProbe || h.next.Before(now) {
			h.next = now.Add(h.pace.NextBackOff())
		}
		h.wakeAll()
	}
	return !h.down
}

// unused gives back the leave to probe.
func (h *health) unused() {
	h.mu.Lock()
	h.probing = false
	h.mu.Unlock()
}

// accepts tells whether the broker has accepted something since t: then what has
// failed since is a matter of the event, not of the broker.
func (h *health) accepts(t time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.down && h.lastDone.After(t)
}

// isDown tells whether there is an outage.
func (h *health) isDown() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down
}

// verdict: how many keys fail, and whether the publisher itself has said that the
// broker is away.
func (h *health) verdict() (failing int, unavailable bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.failing), h.down && h.told
}
