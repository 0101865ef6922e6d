package outbox

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/postbus/postbus/internal/testkit"
)

// asking runs, by the code that runs in production, every statement that reads the log,
// the links or what is parked; a rebase alone is left out, which reads all there is.
// What it does itself, it does on plain.
type asking struct {
	*fixture
	plain *fixture
	which testkit.Server
	n     int64  // events of the log before it began
	i     int    // how many did this before
	when  string // what the planner knows
	kept  bool   // the plans were made before there was anything
}

func (g *asking) all(t *testing.T) {
	g.askRelay(t, fmt.Sprint("test", g.i))
	g.askReader(t)
	g.askParking(t, fmt.Sprint("park", g.i))
	g.askDurable(t, fmt.Sprint("durable", g.i))
	g.askDesk(t, fmt.Sprint("desk", g.i))
	g.askRetention(t)
	g.stats()
}

func answered[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// askRelay begins a position, takes it over, works a round with late events, looks in
// vain for events of transactions that have none, and prunes.
func (g *asking) askRelay(t *testing.T, name string) {
	ok(t, g.database().check(t.Context()))
	s := g.stepped(name, func(c *RelayConfig) { c.StartAt = FromNow })
	s.newHolder()
	for _, late := range []bool{true, false} {
		tx := g.begin(g.session(g.which))
		if late {
			g.append(tx, event("late", 1))
		} else if _, err := tx.Exec(t.Context(), `SELECT pg_current_xact_id()`); err != nil {
			t.Fatal(err)
		}
		g.add("k", 1, 3)
		s.drain()
		g.commit(tx)
		s.drain()
	}
	// More, and of the log itself: a snapshot that lists transactions which have many
	// events there, and one with some that have none.
	for _, xip := range []string{"3,4,5,6,7,8,9,10", "610,611,612,613"} {
		s.t.idle.asked = map[uint64]struct{}{}
		p := &s.t.chain.pos.round
		was := p.snap
		p.snap = answered[snapshot](t)(parseSnapshot("3:620:" + xip))
		found := answered[bool](t)(s.t.lateNow(t.Context(), was.text))
		if want := g.n > 0 && xip[0] == '3'; found != want {
			t.Errorf("late events of %s: %v, want %v", xip, found, want)
		}
		p.snap = was
	}
	s.stop()
	if g.n == 0 {
		return
	}
	c := newChain(g.database(), owner{kindRelay, "r01"}, allSlots, uuid.New())
	answered[bool](t)(c.load(t.Context()))
	c.pruned = 100
	ok(t, c.pruneUpTo(t.Context(), 200))
}

// askReader reads rounds in the middle of the log.
func (g *asking) askReader(t *testing.T) {
	n := g.n
	rd := newReader(g.database(), allSlots, "here/1")
	r := round{n: 1, prev: emptySnapshot, prevID: n / 2, snap: snapshot{xmin: 3, xmax: 1 << 40}, upper: min(n, n/2+3000), known: time.Now()}
	out := make(chan *chunk, 100)
	for _, only := range []string{"*", "nothing.like.this"} {
		rd.narrow(0, []string{only}, []string{"order.*"})
		rd.width = firstRows
		ok(t, rd.read(t.Context(), &r, 0, out))
		r.upper = min(n, n/2+firstRows)
	}
	answered[int64](t)(rd.jump(t.Context(), n/2, n))
	answered[int64](t)(rd.jump(t.Context(), n+1_000_000, n+2_000_000))
	xids := []uint64{103, 104, 105, 106, 107, 108, 109, 110}
	ids := answered[[]int64](t)(rd.lateIDs(t.Context(), xids, 0, n))
	answered[[]int64](t)(rd.lateIDs(t.Context(), []uint64{610, 611, 612, 613}, 0, n))
	if n > 0 && len(ids) < 8 {
		t.Fatalf("%d late events", len(ids))
	}
	if _, _, err := rd.fetchLate(t.Context(), ids[:min(500, len(ids))]); err != nil {
		t.Fatal(err)
	}
}

// askParking puts events aside, finds them again, is asked about them, and is done with them.
func (g *asking) askParking(t *testing.T, name string) {
	ctx := t.Context()
	s := g.stepped(name, func(c *RelayConfig) { c.StartAt = FromNow })
	ok(t, s.t.loadParked(ctx))
	g.add("p", 1, 5)
	ok(t, s.t.startRound(ctx, 0))
	s.fill()
	eventually(t, func() bool { items, _, _ := s.t.window.view(); return len(items) == 5 }, "5 events are in the window")
	items, _, _ := s.t.window.view()
	ids := make([]int64, len(items))
	for i, it := range items {
		ids[i] = it.LogID
	}
	ok(t, s.t.park(ctx, items, 5, items, nil))
	ok(t, s.t.loadParked(ctx))
	answered[map[int64][]byte](t)(s.t.loadPayloads(ctx, []*item{s.t.parked[ids[0]], s.t.parked[ids[4]]}))
	answered[[]int64](t)(s.t.parkedIDs(ctx, 0))
	given := s.t.reparked(ids[:3], []string{"given_up", "given_up", "retrying"}, []int32{1, 1, 1}, []string{"a", "b", "c"})
	ok(t, s.t.chain.advance(ctx, ids[4], true, given))
	for _, it := range s.t.parked {
		s.t.laneOf(it.Key).add(it)
	}
	d := answered[*Desk](t)(NewDesk(g.as(testkit.Admin), name, DeskConfig{Schema: g.schema}))
	ok(t, d.Replay(ctx, ids[0]))
	ok(t, d.Discard(ctx, ids[4]))
	if acted := answered[bool](t)(s.t.carryOut(ctx)); !acted {
		t.Error("the requests were not carried out")
	}
	answered[int](t)(d.DiscardMatching(ctx, ParkedFilter{Key: "p"}))
	answered[bool](t)(s.t.carryOut(ctx))
	ok(t, s.t.chain.advance(ctx, ids[4], true, s.t.unpark(ids)))
	s.stop()
}

// askDurable has a durable handler handle some events, each and in batches, and one fail.
func (g *asking) askDurable(t *testing.T, name string) {
	for _, batch := range []int{1, 3} {
		cfg := g.durableConfig(fmt.Sprint(name, ".", batch))
		cfg.Batch, cfg.StartAt = batch, FromNow
		seen := make(chan int, 100)
		stop := g.durable(func(_ context.Context, _ *Tx, m *Message) error { seen <- numberOf(m.Payload); return nil }, cfg)
		eventually(t, func() bool {
			return g.plain.count(`SELECT count(*) FROM `+g.table("relay_link")+` WHERE relay = $1`, cfg.Name) > 0
		}, "it has begun")
		g.backlog(6, "d")
		for range 6 {
			<-seen
		}
		ok(t, stop())
	}
}

// askDesk looks at positions and at what is parked, and moves and drops one.
func (g *asking) askDesk(t *testing.T, name string) {
	n := g.n
	ctx := t.Context()
	s := g.stepped(name, func(c *RelayConfig) { c.StartAt = FromNow })
	g.add("k", 1, 5)
	s.rest()
	d := answered[*Desk](t)(NewDesk(g.as(testkit.Admin), name, DeskConfig{Schema: g.schema}))
	last := s.t.chain.pos.round.upper
	back := last - 3
	if n > 0 {
		back = last - 1000
	}
	answered[Move](t)(d.PlanRewind(ctx, back))
	answered[RequestID](t)(d.RewindTo(ctx, last-3))
	ok(t, s.t.steer(ctx))
	s.mayRepeat = nil
	s.takeOver()
	s.drain()
	g.add("k", 6, 5)
	answered[Move](t)(d.PlanSkip(ctx, last+2))
	answered[RequestID](t)(d.SkipTo(ctx, last+2))
	ok(t, s.t.steer(ctx))
	s.stop()
	answered[int64](t)(d.IDAt(ctx, time.Now().Add(-time.Hour)))
	answered[[]Request](t)(d.Requests(ctx, 0, 100))
	answered[DropPlan](t)(d.PlanDrop(ctx))
	g.plain.exec(`UPDATE `+g.table("relay_lease")+` SET expires = '-infinity' WHERE relay = $1`, name)
	ok(t, d.Drop(ctx, DropConfig{}))
	if n == 0 {
		return
	}
	d = answered[*Desk](t)(NewDesk(g.as(testkit.Admin), "r00", DeskConfig{Schema: g.schema}))
	answered[[]ParkedEvent](t)(d.Parked(ctx, ParkedFilter{}, 5000, 100))
	answered[ParkedEvent](t)(d.Get(ctx, 7000))
	answered[Matched](t)(d.Matching(ctx, ParkedFilter{Key: "k77"}))
}

// askRetention takes a chunk, and what is late, and ends a position.
func (g *asking) askRetention(t *testing.T) {
	n := g.n
	ctx := t.Context()
	r := g.retention()
	ok(t, r.db.checkOrigin(ctx))
	held := answered[[]HeldBack](t)(r.db.heldBack(ctx))
	gr := answered[ground](t)(r.begin(ctx))
	for range 2 {
		c := answered[chunked](t)(r.chunk(ctx, gr.floor, min(gr.lastID, gr.floor+400)))
		if n > 0 && c.removed < 390 {
			t.Errorf("%d events were removed above %d", c.removed, gr.floor)
		}
		gr.floor = c.floor
	}
	gr.late = []uint64{3, 4, 610, 611}
	ok(t, r.removeLate(ctx, nil, &gr, &RetentionReport{}))
	answered[int64](t)(r.removeThese(ctx, []int64{gr.floor + 1, gr.floor + 2, n - 1}, gr.lastID))
	answered[int64](t)(r.jump(ctx, gr.floor, gr.lastID))
	ok(t, r.removeAside(ctx, nil, &RetentionReport{}))
	if n == 0 {
		return
	}
	name := fmt.Sprintf("r%02d", 20+g.i)
	at := slices.IndexFunc(held, func(h HeldBack) bool { return h.Name == name })
	if at < 0 {
		t.Fatalf("%s holds nothing: %+v", name, held)
	}
	if ended := answered[bool](t)(r.db.endPosition(ctx, held[at])); !ended {
		t.Errorf("the position of %s was not ended", name)
	}
}
