package outbox

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
)

// Retention beside random schedules of transactions of every shape, two relays that
// each are ahead at times, taken over and begun anew, and rewinds. Nothing that a
// position has still to read may leave: each relay gets every committed event, a
// rewind all that it goes back to or a refusal. And nothing stays for ever: when all
// is read, the log is empty, late events included.
//
// POSTBUS_TEST_SEED repeats a schedule, as far as the server's part repeats.
func TestRetentionAgainstModel(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		seed := uint64(time.Now().UnixNano())
		if s := os.Getenv("POSTBUS_TEST_SEED"); s != "" {
			var err error
			if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		ops := 1200
		if long {
			ops = 40_000
		}
		f.old()
		m := &retentionModel{model: newModel(f, which, rand.New(rand.NewPCG(seed, 0))), rewound: -1}
		m.other = f.stepped("other", func(cfg *RelayConfig) { cfg.Window = modelWindow })
		m.other.width = m.relay.width
		m.other.mayRepeat = nil // a rewind repeats what it goes back to
		defer func() {
			if t.Failed() {
				t.Logf("POSTBUS_TEST_SEED=%d; the last steps: %s", seed, strings.Join(m.trace[max(0, len(m.trace)-80):], ", "))
			}
		}()
		for range ops {
			m.act()
		}
		m.end()
	})
}

type retentionModel struct {
	*model
	other     *stepped
	keeper    *Retention
	rewound   int   // how much other had delivered when it was last rewound; -1: that is done
	rewoundTo int64 // log id
	looks     int
	removed   int64
	rewinds   int
	refused   int
}

func (m *retentionModel) act() {
	switch p := m.r.IntN(100); {
	case p < 70:
		m.model.act()
	case p < 80:
		m.someOfOther()
	case p < 83:
		m.say("drain other")
		m.other.drain()
		m.compareOther()
	case p < 85:
		m.say("crash other")
		m.other.newHolder()
	case p < 88:
		m.rewind()
	default:
		m.retain()
	}
}

func (m *retentionModel) someOfOther() {
	for range 1 + m.r.IntN(4) {
		if !m.other.step() && m.other.t.active {
			m.other.fill()
			m.other.deliver(1 + m.r.IntN(6))
		}
	}
	m.say("some of other")
}

// retain is one look, by a process that has looked before or another.
func (m *retentionModel) retain() {
	m.f.t.Helper()
	if m.keeper == nil || m.r.IntN(4) == 0 {
		m.keeper = m.f.retention(func(c *RetentionConfig) { c.Logger = slog.New(slog.DiscardHandler) })
	}
	m.keeper.width = 1 + m.r.Int64N(9)
	report, err := m.keeper.Once(m.ctx())
	m.must(err)
	m.looks++
	m.removed += report.Removed
	m.say("retain: %d, floor %d", report.Removed, report.Floor)
}

// rewind takes other back to any id that it has passed.
func (m *retentionModel) rewind() {
	s := m.other
	if s.t.active || !s.t.chain.pos.finished() || len(s.delivered) == 0 || m.rewound >= 0 {
		return
	}
	id := s.delivered[m.r.IntN(len(s.delivered))].LogID
	db := s.shift.db
	floor, err := db.floor(m.ctx())
	m.must(err)
	if m.r.IntN(3) > 0 {
		id = max(id, floor+1)
	}
	err = s.t.chain.rewind(m.ctx(), id, db.lockPositions(), db.ifStillInLog(id))
	if isGoneFromLog(err) && id <= floor {
		m.refused++
		m.say("rewind to %d: refused", id)
		s.reload()
		return
	}
	m.must(err)
	if id <= floor {
		m.f.t.Fatalf("rewound to %d, where events up to %d may be gone", id, floor)
	}
	m.rewinds++
	m.rewound, m.rewoundTo = len(s.delivered), id
	s.t.read(m.ctx(), 0)
	m.say("rewind to %d", id)
}

func (m *retentionModel) compareOther() {
	m.f.t.Helper()
	m.compare(m.other.delivered)
	if m.rewound < 0 {
		return
	}
	again := map[int64]bool{}
	for _, it := range m.other.delivered[m.rewound:] {
		again[it.LogID] = true
	}
	for _, it := range m.other.delivered[:m.rewound] {
		if it.LogID >= m.rewoundTo && !again[it.LogID] {
			m.f.t.Fatalf("event %d (%s/%d) did not come again after the rewind to %d", it.LogID, it.Key, numberOf(it.Payload), m.rewoundTo)
		}
	}
	m.rewound = -1
}

func (m *retentionModel) end() {
	for len(m.open) > 0 {
		m.finish(m.open[0])
	}
	for len(m.prepared) > 0 {
		m.finishPrepared(0)
	}
	m.drain()
	m.other.drain()
	m.compareOther()
	m.relay.rest()
	m.other.rest()
	m.retain() // some may have been noted as late by this very look
	m.retain()
	if n := m.f.logged(); n != 0 {
		m.f.t.Fatalf("%d events stay in the log for ever", n)
	}
	m.f.t.Logf("%d transactions, %d events committed, %d removed by %d looks, %d rewinds, %d refused", m.begun, len(m.done), m.removed, m.looks, m.rewinds, m.refused)
	if m.removed != int64(len(m.done)) {
		m.f.t.Errorf("%d events were committed, and %d removed", len(m.done), m.removed)
	}
}
