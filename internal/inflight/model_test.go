package inflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"pgregory.net/rapid"
)

var errModelLost = errors.New("lost")

// job is one delivery of the model, and what its handler does with it.
type job struct {
	id, source int
	key        string
	size       int
	takes      time.Duration
	nacks      int // before it is acked
	verdict    Verdict
}

// event happens before the delivery of that number is offered.
type event struct {
	before int
	kind   string // "lose", "withdraw", "await", "pause"
	source int
}

// script is what one run does; drawn by rapid, played in a bubble of synctest.
type script struct {
	inFlight, buffered, bytes int
	closeTimeout              time.Duration
	jobs                      []job
	events                    []event
	batches                   []int
	serial                    bool // one consumer, else a goroutine for each message
	closeAt                   int  // before that delivery; after the last and all handled if it is len(jobs)
}

func drawScript(t *rapid.T) script {
	s := script{
		inFlight:     rapid.IntRange(1, 8).Draw(t, "inFlight"),
		buffered:     rapid.IntRange(1, 20).Draw(t, "buffered"),
		bytes:        rapid.IntRange(1, 200).Draw(t, "bytes"),
		closeTimeout: time.Duration(rapid.IntRange(1, 20).Draw(t, "closeTimeout")) * time.Millisecond,
		serial:       rapid.Bool().Draw(t, "serial"),
	}
	n := rapid.IntRange(0, 60).Draw(t, "n")
	for i := range n {
		s.jobs = append(s.jobs, job{
			id:      i,
			source:  rapid.IntRange(0, 2).Draw(t, "source"),
			key:     rapid.SampledFrom([]string{"", "a", "a", "b", "c", "d"}).Draw(t, "key"),
			size:    rapid.IntRange(0, 30).Draw(t, "size"),
			takes:   rapid.SampledFrom([]time.Duration{0, 0, 0, 50, 150, 1000, 5000, 40000}).Draw(t, "takes") * time.Microsecond,
			nacks:   rapid.SampledFrom([]int{0, 0, 0, 0, 1, 3}).Draw(t, "nacks"),
			verdict: rapid.SampledFrom([]Verdict{Retry, Retry, GiveBack, GiveBackKey}).Draw(t, "verdict"),
		})
	}
	for range rapid.IntRange(0, 4).Draw(t, "events") {
		s.events = append(s.events, event{
			before: rapid.IntRange(0, n).Draw(t, "before"),
			kind:   rapid.SampledFrom([]string{"lose", "withdraw", "await", "pause"}).Draw(t, "kind"),
			source: rapid.IntRange(0, 2).Draw(t, "of"),
		})
	}
	for left := n; left > 0; {
		b := rapid.IntRange(1, left).Draw(t, "batch")
		s.batches = append(s.batches, b)
		left -= b
	}
	s.closeAt = n
	if rapid.Bool().Draw(t, "closeEarly") {
		s.closeAt = rapid.IntRange(0, n).Draw(t, "closeAt")
	}
	return s
}

// model watches one run.
type model struct {
	script
	room *Room[int]

	taking   sync.Mutex
	mu       sync.Mutex
	faults   []string
	active   map[string]int // key -> the one with a handler
	running  int
	started  map[int]int    // id -> attempts that a handler has seen
	last     map[string]int // key -> highest id that was handed over
	repeat   map[string]int // key -> id that has to come again first
	acked    map[int]bool
	lost     map[int]bool
	offered  int // the first so many are the room's
	results  map[int]Result[int]
	handlers sync.WaitGroup
}

func (m *model) fault(format string, args ...any) {
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

func (m *model) handle(msg *message.Message) {
	id, _ := strconv.Atoi(msg.UUID)
	j := m.jobs[id]
	m.mu.Lock()
	if lost := context.Cause(msg.Context()); m.lost[id] && !errors.Is(lost, errModelLost) {
		m.fault("%d was handed over after it was lost, and its context says %v", id, lost)
	}
	if other, busy := m.active[j.key]; busy && j.key != "" {
		m.fault("%d was handed over beside %d of the same key", id, other)
	}
	if m.started[id]++; strconv.Itoa(m.started[id]) != msg.Metadata["attempt"] {
		m.fault("%d: attempt %d says that it is %s", id, m.started[id], msg.Metadata["attempt"])
	}
	if msg.Metadata["touched"] != "" {
		m.fault("%d: the message is one that a handler had before", id)
	}
	if j.key != "" {
		if again, ok := m.repeat[j.key]; ok && again != id { // unless it has been taken out since
			m.mu.Unlock()
			m.take()
			m.mu.Lock()
		}
		if again, ok := m.repeat[j.key]; ok && again != id && !m.lost[again] {
			m.fault("%d came before the repeat of %d", id, again)
		}
		delete(m.repeat, j.key)
		if m.started[id] == 1 && id <= m.last[j.key] {
			m.fault("%d came after %d", id, m.last[j.key])
		}
		m.last[j.key] = max(m.last[j.key], id)
		m.active[j.key] = id
	}
	if m.running++; m.running > m.inFlight {
		m.fault("%d handlers at once, %d are allowed", m.running, m.inFlight)
	}
	attempt := m.started[id]
	m.mu.Unlock()

	msg.Metadata["touched"] = "yes"
	time.Sleep(j.takes)

	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
	delete(m.active, j.key)
	if attempt <= j.nacks {
		if j.key != "" && j.verdict == Retry {
			m.repeat[j.key] = id
		}
		msg.Nack()
		return
	}
	m.acked[id] = true
	msg.Ack()
}

func (m *model) take() {
	m.taking.Lock()
	defer m.taking.Unlock()
	for _, r := range m.room.Take(nil) {
		m.mu.Lock()
		if before, twice := m.results[r.Token]; twice {
			m.fault("%d was reported twice: %v, %v", r.Token, before, r)
		}
		if m.lost[r.Token] {
			m.fault("%d was reported after it was lost: %v", r.Token, r)
		}
		if r.Outcome == Acked && !m.acked[r.Token] {
			m.fault("%d was reported as acked, and was not", r.Token)
		}
		if r.Handed != (m.started[r.Token] > 0) {
			m.fault("%d: handed %v, and a handler has had it %d times", r.Token, r.Handed, m.started[r.Token])
		}
		m.results[r.Token] = r
		if r.Outcome == GivenBack {
			delete(m.repeat, m.jobs[r.Token].key)
		}
		m.mu.Unlock()
	}
}

func (m *model) play() {
	m.room = New(context.Background(), Config[int]{
		Build: func(id, attempt int) *message.Message {
			msg := message.NewMessage(strconv.Itoa(id), nil)
			msg.Metadata["attempt"] = strconv.Itoa(attempt)
			return msg
		},
		Nacked:      func(id, _ int) Verdict { return m.jobs[id].verdict },
		MaxInFlight: m.inFlight, MaxBuffered: m.buffered, MaxBufferedBytes: m.bytes,
		NackDelay: 10 * time.Millisecond, MaxNackDelay: 20 * time.Millisecond,
		CloseTimeout: m.closeTimeout, CloseGrace: time.Millisecond,
	})
	m.active, m.started, m.last = map[string]int{}, map[int]int{}, map[string]int{"a": -1, "b": -1, "c": -1, "d": -1}
	m.repeat, m.acked, m.lost, m.results = map[string]int{}, map[int]bool{}, map[int]bool{}, map[int]Result[int]{}

	var others sync.WaitGroup
	others.Go(func() {
		for msg := range m.room.Out() {
			if m.serial {
				m.handle(msg)
			} else {
				m.handlers.Go(func() { m.handle(msg) })
			}
		}
	})
	others.Go(func() {
		for range m.room.Changed() {
			m.take()
		}
	})

	for _, b := range m.batches {
		for n := range b { // what happens within a batch, happens before it
			m.happen(m.offered + n)
		}
		if m.closeAt < m.offered+b {
			break
		}
		var ds []Delivery[int]
		for _, j := range m.jobs[m.offered : m.offered+b] {
			ds = append(ds, Delivery[int]{Key: j.key, Size: j.size, Token: j.id})
		}
		n, err := m.room.Offer(context.Background(), ds)
		if n != b || err != nil {
			m.fault("offered %d, taken %d: %v", b, n, err)
		}
		m.offered += n
	}
	m.happen(len(m.jobs))
	if m.closeAt == len(m.jobs) {
		for m.room.Stats().Buffered > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	abandoned := m.room.Close()
	m.take()
	others.Wait()
	m.handlers.Wait()
	m.take()

	for id := range m.offered {
		r, reported := m.results[id]
		switch {
		case m.lost[id] && !slices.Contains(abandoned, id):
		case slices.Contains(abandoned, id):
			if reported || m.lost[id] {
				m.fault("%d was abandoned, and lost or reported: %v", id, r)
			}
		case !reported:
			m.fault("%d was never reported", id)
		case m.acked[id] != (r.Outcome == Acked):
			m.fault("%d: acked %v, reported as %v", id, m.acked[id], r)
		}
	}
	if s := m.room.Stats(); s.Buffered != 0 || s.Bytes != 0 || s.Paused != 0 {
		m.fault("at the end there is something left: %+v", s)
	}
}

func (m *model) happen(before int) {
	for _, e := range m.events {
		if e.before != before {
			continue
		}
		match := func(id int) bool { return m.jobs[id].source == e.source }
		switch e.kind {
		case "lose":
			m.taking.Lock() // so that nothing is between the room and results
			m.room.Lose(match, errModelLost)
			m.mu.Lock()
			for id := range m.offered {
				if _, reported := m.results[id]; !reported && match(id) {
					m.lost[id] = true
				}
			}
			m.mu.Unlock()
			m.taking.Unlock()
		case "withdraw":
			m.room.Withdraw(match)
		case "await":
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Millisecond)
			_ = m.room.Await(ctx, match)
			cancel()
		case "pause":
			time.Sleep(15 * time.Millisecond)
		}
	}
}

// What is promised holds for any script.
func TestRoomModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{script: drawScript(rt)}
		synctest.Test(t, func(*testing.T) { m.play() })
		for _, f := range m.faults {
			rt.Error(f)
		}
	})
}
