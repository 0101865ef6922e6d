package outbox

import (
	"context"
	"fmt"
	"hash/maphash"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

// stepped is a relay whose publisher and clock are the test: it takes over,
// looks, reads, and writes links by the code that runs in production, one step at
// a time, and what its lane gets is delivered when the test says so.
type stepped struct {
	f         *fixture
	shift     *relayWork
	shared    *sharedRead
	t         *tenure
	delivered []*item // in order, repeats included
	steps     int
	width     func() int64 // of the reader's first window in a round; nil: as it is

	sent      map[int64]bool // by log id
	mayRepeat map[int64]bool // of those, what a crash has left above the last link; nil: anything
}

func (f *fixture) stepped(name string, tune ...func(*RelayConfig)) *stepped {
	f.t.Helper()
	cfg := f.config()
	cfg.Name = name
	for _, t := range tune {
		t(&cfg)
	}
	relay, err := NewRelay(f.as(testkit.Relay), newSink(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	s := &stepped{f: f, shift: &relayWork{relay: relay, db: f.database()}, sent: map[int64]bool{}, mayRepeat: map[int64]bool{}}
	s.newHolder()
	f.t.Cleanup(s.stop)
	return s
}

func (f *fixture) database() *database {
	return &database{pool: f.as(testkit.Relay), schema: f.schema, timeout: 20 * time.Second}
}

// sharing has it read as if another relay of the process read the log, too.
func (s *stepped) sharing(ids int64) {
	s.shared = &sharedRead{users: 2, size: ids, blocks: map[int64]*block{}}
	s.t.reader.shared = s.shared
}

// newHolder is another process that takes over: it knows what is stored.
func (s *stepped) newHolder() {
	s.f.t.Helper()
	s.shift.holder, s.shift.sent, s.shift.sentRound = uuid.New(), nil, 0
	if s.t != nil && s.mayRepeat != nil {
		items, _, _ := s.t.window.view()
		for _, it := range items {
			s.mayRepeat[it.LogID] = s.sent[it.LogID]
		}
		for id := range s.t.sentBefore { // by reloads, perhaps not read again since
			s.mayRepeat[id] = s.mayRepeat[id] || s.t.active && id > s.t.chain.pos.lastID
		}
	}
	s.takeOver()
}

// reload is what the same process does after an error: it remembers what it sent.
func (s *stepped) reload() {
	s.f.t.Helper()
	s.shift.remember(s.t)
	s.takeOver()
}

func (s *stepped) stop() {
	if s.t != nil && s.t.stopReading != nil {
		s.t.stopReading()
	}
}

func (s *stepped) takeOver() {
	s.f.t.Helper()
	s.stop()
	ctx := context.Background()
	l := newLease(s.shift.db, s.shift.who(), allSlots, s.shift.holder, time.Minute)
	source, err := s.shift.db.source(ctx)
	if err != nil {
		s.f.t.Fatal(err)
	}
	s.t = s.shift.newTenure(l, source)
	if err := s.t.takeOver(ctx, s.t.cfg.StartAt, false); err != nil {
		s.f.t.Fatal(err)
	}
	s.t.reader.shared = s.shared
	s.t.seed = maphash.MakeSeed()
	s.t.health = newHealth(s.t.log, func() {})
	s.t.lanes = []*lane{newLane(s.t)}
	s.t.parked = map[int64]*item{}
	s.t.idle.reset(time.Minute)
	s.narrow()
	if s.t.sentRound != s.t.chain.pos.round.n {
		s.t.sentBefore = nil
	}
	if !s.t.chain.pos.finished() {
		s.t.read(ctx, s.t.chain.pos.lastID)
	}
}

// deliver publishes up to n of the events that stand in the lane.
func (s *stepped) deliver(n int) {
	l := s.t.lanes[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	for ; n > 0 && len(l.fifo) > 0; n-- {
		it := l.fifo[0]
		l.fifo = l.fifo[1:]
		if s.sent[it.LogID] && s.mayRepeat != nil && !s.mayRepeat[it.LogID] {
			s.f.t.Errorf("event %d is sent twice: the position had passed it, or the same process had sent it before", it.LogID)
		}
		s.sent[it.LogID] = true
		delete(s.mayRepeat, it.LogID)
		s.delivered = append(s.delivered, it)
		it.state.Store(stSettled)
	}
}

// fill waits until the lane has something, or all of the round is in the window.
func (s *stepped) fill() {
	s.f.t.Helper()
	l := s.t.lanes[0]
	limit := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		standing := len(l.fifo)
		l.mu.Unlock()
		if _, _, ended := s.t.window.view(); standing > 0 || ended {
			return
		}
		select {
		case <-l.wakeC:
		case <-s.t.progressC:
		case err := <-s.t.readErrC:
			s.f.t.Fatal(err)
		case <-limit:
			s.f.t.Fatal("the reader neither gives an event nor ends")
		}
	}
}

// narrow makes the reader's windows small; nobody reads while no round is active.
func (s *stepped) narrow() {
	if s.width != nil && !s.t.active {
		s.t.reader.width = s.width()
	}
}

// step does what the relay's loop does next, looking at once if it is idle.
func (s *stepped) step() (acted bool) {
	s.f.t.Helper()
	s.steps++
	s.t.idle.due = s.steps%2 == 0 // told of a commit, or on its own account
	s.t.idle.next = time.Now()
	s.narrow()
	acted, _, err := s.t.step(context.Background())
	if err != nil {
		s.f.t.Fatal(err)
	}
	return acted
}

// drain works until a look finds nothing more.
func (s *stepped) drain() {
	s.f.t.Helper()
	for {
		acted := s.step()
		if acted {
			continue
		}
		if !s.t.active {
			return
		}
		s.fill()
		s.deliver(1 << 30)
	}
}

// ns are the numbers of key's deliveries.
func (s *stepped) ns(key string) (ns []int) {
	for _, it := range s.delivered {
		if it.Key == key {
			ns = append(ns, numberOf(it.Payload))
		}
	}
	return ns
}

func (s *stepped) expect(key string, want ...int) {
	s.f.t.Helper()
	if got := s.ns(key); fmt.Sprint(got) != fmt.Sprint(want) {
		s.f.t.Fatalf("key %s: delivered %v, want %v", key, got, want)
	}
}

// session is one connection to the server, past every pooler.
func (f *fixture) session(which testkit.Server) *pgx.Conn {
	f.t.Helper()
	conn, err := pgx.Connect(f.t.Context(), testkit.URL(f.t, which))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (f *fixture) begin(conn *pgx.Conn) pgx.Tx {
	f.t.Helper()
	tx, err := conn.Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return tx
}

func (f *fixture) append(tx pgx.Tx, evs ...events.DomainEvent) {
	f.t.Helper()
	if err := f.log.Append(f.t.Context(), tx, evs...); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) commit(tx pgx.Tx) {
	f.t.Helper()
	if err := tx.Commit(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func eachPostgres(t *testing.T, test func(t *testing.T, f *fixture, which testkit.Server)) {
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			test(t, setUp(t, which), which)
		})
	}
}
