package outbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

// The read against a model: random schedules of transactions, of every shape, and
// of the relay's steps, take-overs and reloads. A look that finds nothing more
// must have found every committed event, whatever stands open; each comes once,
// but for what a crash left above the last link, and those of one key in the order
// of their transactions.
//
// POSTBUS_TEST_SEED repeats a schedule, as far as the server's part repeats.
func TestReadAgainstModel(t *testing.T) {
	t.Parallel()
	eachPostgres(t, func(t *testing.T, f *fixture, which testkit.Server) {
		seed := uint64(time.Now().UnixNano())
		if s := os.Getenv("POSTBUS_TEST_SEED"); s != "" {
			var err error
			if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		ops := 1500
		if long {
			ops = 60_000
		}
		m := newModel(f, which, rand.New(rand.NewPCG(seed, 0)))
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

// modelTx is an open transaction and what it has written.
type modelTx struct {
	name   int
	conn   *pgx.Conn
	stack  []pgx.Tx    // the transaction, then its savepoints
	wrote  [][]arrival // by level of the stack
	locked map[string]bool
	id     string // once prepared
}

type model struct {
	f        *fixture
	r        *rand.Rand
	relay    *stepped
	idle     []*pgx.Conn
	open     []*modelTx
	prepared []*modelTx
	owner    map[string]*modelTx // of each key that somebody has locked
	versions map[string]int
	pending  map[uuid.UUID]arrival
	done     map[uuid.UUID]arrival // committed
	crashes  int
	begun    int
	drains   int
	trace    []string
}

const modelWindow = 20

func newModel(f *fixture, which testkit.Server, r *rand.Rand) *model {
	m := &model{f: f, r: r, owner: map[string]*modelTx{}, versions: map[string]int{}, pending: map[uuid.UUID]arrival{}, done: map[uuid.UUID]arrival{}}
	m.relay = f.stepped("model", func(cfg *RelayConfig) { cfg.Window = modelWindow })
	m.relay.width = func() int64 { return 1 + r.Int64N(12) }
	if r.IntN(2) == 0 {
		m.relay.sharing(1 + r.Int64N(9))
	}
	for range 6 {
		m.idle = append(m.idle, f.session(which))
	}
	return m
}

func (m *model) say(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
}

func (m *model) ctx() context.Context { return m.f.t.Context() }

func (m *model) must(err error) {
	m.f.t.Helper()
	if err != nil {
		m.f.t.Fatal(err)
	}
}

// act takes one random step.
func (m *model) act() {
	switch p := m.r.IntN(100); {
	case p < 15:
		if len(m.idle) > 0 {
			m.begin()
		}
	case p < 19:
		m.f.exec(`SELECT pg_current_xact_id()`) // somebody else's
	case p < 56:
		if len(m.open) > 0 {
			m.write(m.open[m.r.IntN(len(m.open))])
		}
	case p < 68:
		if len(m.open) > 0 {
			m.finish(m.open[m.r.IntN(len(m.open))])
		}
	case p < 72:
		if len(m.prepared) > 0 {
			m.finishPrepared(m.r.IntN(len(m.prepared)))
		}
	case p < 88:
		m.some()
	case p < 95:
		m.drain()
	case p < 98:
		m.say("reload")
		m.relay.reload()
	default:
		m.say("crash")
		m.crashes++
		m.relay.newHolder()
	}
}

func (m *model) begin() {
	tx := &modelTx{conn: m.idle[0], locked: map[string]bool{}, name: m.begun}
	m.idle, m.begun = m.idle[1:], m.begun+1
	tx.stack, tx.wrote = []pgx.Tx{m.f.begin(tx.conn)}, [][]arrival{nil}
	early := m.r.IntN(2) == 0
	if early {
		_, err := tx.stack[0].Exec(m.ctx(), `SELECT pg_current_xact_id()`)
		m.must(err)
	}
	m.say("begin %d early=%v", tx.name, early)
	m.open = append(m.open, tx)
}

// write appends in tx, or opens or ends a savepoint.
func (m *model) write(tx *modelTx) {
	top := len(tx.stack) - 1
	switch p := m.r.IntN(10); {
	case p == 0:
		sub, err := tx.stack[top].Begin(m.ctx())
		m.must(err)
		tx.stack, tx.wrote = append(tx.stack, sub), append(tx.wrote, nil)
		m.say("savepoint %d", tx.name)
	case p == 1 && top > 0:
		m.must(tx.stack[top].Commit(m.ctx()))
		tx.wrote[top-1] = append(tx.wrote[top-1], tx.wrote[top]...)
		tx.stack, tx.wrote = tx.stack[:top], tx.wrote[:top]
		m.say("release %d", tx.name)
	case p == 2 && top > 0:
		m.must(tx.stack[top].Rollback(m.ctx()))
		m.undo(tx.wrote[top])
		tx.stack, tx.wrote = tx.stack[:top], tx.wrote[:top]
		m.say("rollback to %d", tx.name)
	default:
		var evs []events.DomainEvent
		var ns []string
		for range 1 + m.r.IntN(4)*m.r.IntN(2) {
			key := fmt.Sprintf("k%d", m.r.IntN(8))
			if m.owner[key] != nil && m.owner[key] != tx {
				key = "loose" // nobody locks it: its order is nobody's
			} else {
				m.owner[key], tx.locked[key] = tx, true
			}
			m.versions[key]++
			e := event(key, m.versions[key])
			a := arrival{key, m.versions[key], e.EventID}
			m.pending[a.id] = a
			tx.wrote[top] = append(tx.wrote[top], a)
			evs, ns = append(evs, e), append(ns, fmt.Sprintf("%s/%d", key, a.n))
		}
		m.f.append(tx.stack[top], evs...)
		m.say("append %d %v", tx.name, ns)
	}
}

// undo takes back events that were never committed.
func (m *model) undo(wrote []arrival) {
	for _, a := range wrote {
		delete(m.pending, a.id)
		if a.key != "loose" { // others have counted on meanwhile
			m.versions[a.key]--
		}
	}
}

func (m *model) settle(tx *modelTx, committed bool) {
	for _, wrote := range tx.wrote {
		if !committed {
			m.undo(wrote)
			continue
		}
		for _, a := range wrote {
			m.done[a.id] = a
			delete(m.pending, a.id)
		}
	}
	for key := range tx.locked {
		delete(m.owner, key)
	}
}

func (m *model) finish(tx *modelTx) {
	m.open = slices.DeleteFunc(m.open, func(o *modelTx) bool { return o == tx })
	m.idle = append(m.idle, tx.conn)
	switch p := m.r.IntN(10); {
	case p < 2:
		m.must(tx.stack[0].Rollback(m.ctx()))
		m.settle(tx, false)
		m.say("rollback %d", tx.name)
	case p < 4 && len(m.prepared) < 3:
		tx.id = m.f.prepare(tx.stack[0])
		m.prepared = append(m.prepared, tx)
		m.say("prepare %d", tx.name)
	default:
		m.must(tx.stack[0].Commit(m.ctx()))
		m.settle(tx, true)
		m.say("commit %d", tx.name)
	}
}

func (m *model) finishPrepared(i int) {
	tx := m.prepared[i]
	m.prepared = slices.Delete(m.prepared, i, i+1)
	how, keep := "COMMIT", m.r.IntN(3) > 0
	if !keep {
		how = "ROLLBACK"
	}
	m.f.exec(how + ` PREPARED '` + tx.id + `'`)
	m.settle(tx, keep)
	m.say("%s prepared %d", strings.ToLower(how), tx.name)
}

// some lets the relay do a part of its work.
func (m *model) some() {
	for range 1 + m.r.IntN(4) {
		if !m.relay.step() && m.relay.t.active {
			m.relay.fill()
			m.relay.deliver(1 + m.r.IntN(6))
		}
	}
	m.say("some")
}

// drain lets the relay do all of it, and compares.
func (m *model) drain() {
	m.f.t.Helper()
	m.say("drain")
	m.drains++
	m.relay.drain()
	m.compare(m.relay.delivered)
}

func (m *model) compare(delivered []*item) {
	m.f.t.Helper()
	if m.f.t.Failed() {
		m.f.t.FailNow() // by deliver, which knows what may be repeated
	}
	first, last := map[uuid.UUID]bool{}, map[string]int{}
	for _, it := range delivered {
		if first[it.EventID] {
			continue
		}
		first[it.EventID] = true
		a, ok := m.done[it.EventID]
		if !ok {
			m.f.t.Fatalf("event %s/%d was published and never committed", it.Key, numberOf(it.Payload))
		}
		if a.key == "loose" {
			continue
		}
		if a.n != last[a.key]+1 {
			m.f.t.Fatalf("event %s/%d came after %s/%d", a.key, a.n, a.key, last[a.key])
		}
		last[a.key] = a.n
	}
	for _, a := range m.done {
		if !first[a.id] {
			m.f.t.Fatalf("event %s/%d is committed and a look that found nothing more has not found it", a.key, a.n)
		}
	}
}

// end finishes what is open, and compares once more; then a relay that starts
// from the beginning must give the same events.
func (m *model) end() {
	for len(m.open) > 0 {
		m.finish(m.open[0])
	}
	for len(m.prepared) > 0 {
		m.finishPrepared(0)
	}
	m.drain()
	again := m.f.stepped("again")
	again.drain()
	m.compare(again.delivered)
	m.f.t.Logf("%d transactions, %d events committed, %d comparisons, %d crashes, %d rounds", m.begun, len(m.done), m.drains, m.crashes,
		m.f.count(`SELECT count(*) FROM `+m.f.table("relay_link")+` WHERE relay = 'model' AND n = round`))
}
