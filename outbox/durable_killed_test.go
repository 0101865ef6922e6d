package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/failpoint"
	"github.com/postbus/postbus/internal/testkit"
)

func init() { testkit.RegisterChild("durable handler", durableProcess) }

// durableSpec is what a process with a durable handler in it is told. When it hits
// the point for the Hit-th time it kills itself, or stops itself (Freeze), which it
// says before. It stops cleanly on SIGTERM.
type durableSpec struct {
	Database, Schema string
	Point            string
	Hit              int64
	Freeze           bool
	Policy           Policy
	Batch            int
	Lease            time.Duration
	Seed             uint64 // of the events that fail; 0: those of fixedTrouble
	Random           int    // in a hundred calls so many fail besides
}

// inHandler is a point of the tests: the handler has written, and not returned.
const inHandler = "in the handler"

// freezes is said by a child that is about to stop itself.
const freezes = "is about to stop"

func (s *durableSpec) kind(key string, n int) int {
	if s.Seed == 0 {
		return fixedTrouble(key, n)
	}
	h := fnv.New32a()
	fmt.Fprint(h, key, n, s.Seed)
	if x := h.Sum32() % 200; x < 8 {
		return int(x%4) + 1
	}
	return 0
}

// fixedTrouble is of each kind one event: see trouble.kind.
func fixedTrouble(key string, n int) int {
	if k, _ := strconv.Atoi(key[1:]); k < 4 && n == k+1 {
		return k + 1
	}
	return 0
}

// handler fails by the rule of trouble. What was replayed is healed: the record of
// requests tells, which outlives the process.
func (s *durableSpec) handler(e *effectsTable, atPoint func(string)) DurableFunc {
	tries := map[int64]int{}
	return func(ctx context.Context, tx *Tx, m *Message) error {
		if err := e.book(ctx, tx, m); err != nil {
			return err
		}
		atPoint(inHandler)
		if rand.IntN(100) < s.Random {
			return errRefused
		}
		tries[m.LogID]++
		kind := s.kind(m.Key, numberOf(m.Payload))
		healed := false
		if kind == 2 || kind == 3 {
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+pgx.Identifier{s.Schema, "relay_request"}.Sanitize()+` WHERE action = 'replay' AND log_id = $1)`, m.LogID).Scan(&healed); err != nil {
				return err
			}
		}
		switch {
		case kind == 1 && tries[m.LogID] <= 2, kind == 2 && !healed:
			return errRefused
		case kind == 3 && !healed, kind == 4:
			return fmt.Errorf("%w: %w", ErrPermanent, errRefused)
		}
		return nil
	}
}

func (s *durableSpec) config() DurableConfig {
	attempts := 4
	if s.Random > 0 {
		attempts = 10
	}
	return DurableConfig{Name: "test", Schema: s.Schema, Policy: s.Policy, Batch: s.Batch, Lease: s.Lease, PollInterval: 50 * time.Millisecond,
		Retry:  RetryConfig{Initial: 2 * time.Millisecond, Max: 20 * time.Millisecond, MaxAttempts: attempts},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid())}
}

func durableProcess(args []string) {
	var spec durableSpec
	if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
		panic(err)
	}
	var hits atomic.Int64
	atPoint := func(name string) {
		if name != spec.Point || hits.Add(1) != spec.Hit {
			return
		}
		if spec.Freeze {
			fmt.Println(freezes)
			syscall.Kill(os.Getpid(), syscall.SIGSTOP)
			return
		}
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	failpoint.Set(atPoint)
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	fmt.Println(hearsSignals)
	pool, err := pgxpool.New(ctx, spec.Database)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	d, err := NewDurable(pool, spec.handler(&effectsTable{name: pgx.Identifier{spec.Schema, "effects"}.Sanitize()}, atPoint), spec.config())
	if err != nil {
		panic(err)
	}
	if err := d.Run(ctx); err != nil {
		panic(err)
	}
}

func (s *durableSpec) startChild(t *testing.T) *testkit.Child {
	t.Helper()
	args, _ := json.Marshal(s)
	return testkit.StartChild(t, "durable handler", string(args))
}

// goOn runs a handler like that of spec in this process.
func (s *durableSpec) goOn(e *effectsTable) (stop func() error) {
	return e.f.durable(s.handler(e, func(string) {}), s.config())
}

// finished waits until total events have taken effect or were discarded, while a
// person decides on those given up; then it is judged: each once, in order of its key.
func (tr *trouble) finished(e *effectsTable, keys []string, each int, policy Policy) {
	tr.f.t.Helper()
	testkit.Eventually(tr.f.t, 60*time.Second, func() bool {
		tr.decide()
		return e.count() >= each*len(keys)-tr.discards() && tr.f.aside() == 0
	}, "all has taken effect or is discarded")
	s := newSink()
	for _, k := range keys {
		s.byKey[k] = e.of(k)
	}
	eventually(tr.f.t, func() bool {
		return tr.f.count(`SELECT count(*) FROM `+tr.f.table("relay_request")+` WHERE done_at IS NULL`) == 0
	}, "no request is open")
	tr.verify(s, keys, each, policy, 0)
}

// A durable handler is killed at each instruction of the list, under each policy,
// one by one and in batches, while events fail, are put aside, replayed and
// discarded; a successor goes on. All takes effect once.
func TestDurableHandlerKilledAtEveryFailpoint(t *testing.T) {
	t.Parallel()
	for i, point := range append([]string{inHandler}, durableFailpoints...) {
		for _, policy := range []Policy{BlockKey, SkipKey} {
			batch := []int{1, 20}[(i+int(policy))%2]
			if long {
				batch = 21 - batch
			}
			t.Run(fmt.Sprint(point, "/policy ", policy, "/batch ", batch), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, testkit.PG15)
				e := f.effectsTable()
				keys := names("k", 12)
				tr := newTrouble(f, fixedTrouble)
				spec := durableSpec{Database: testkit.AddressOf(f.as(testkit.Relay)), Schema: f.schema, Point: point, Hit: 1,
					Policy: policy, Batch: batch, Lease: 400 * time.Millisecond}
				switch point {
				case fpRoundLinked, fpAfterEffects:
					spec.Hit = 2
				case fpBeforeEffects, inHandler:
					spec.Hit = 4
				}
				f.backlog(3, keys...)
				child := spec.startChild(t)
				eventually(t, func() bool { return hasExited(child) || e.count() > 12 }, "it works, or is dead")
				for n := 4; n <= 6; n++ {
					f.backlogFrom(n, 1, keys...)
				}
				eventually(t, func() bool { tr.decide(); return hasExited(child) }, "the point is reached")
				if err := child.Wait(time.Second); err == nil || err.Error() != "signal: killed" {
					t.Errorf("it ended otherwise: %v", err)
				}
				spec.goOn(e)
				tr.finished(e, keys, 6, policy)
			})
		}
	}
}

func hasExited(c *testkit.Child) bool {
	select {
	case <-c.Exited():
		return true
	default:
		return false
	}
}

// A hundredth of the events fails in all ways, a tenth of the calls besides;
// processes die at random points of their work and take over from each other.
func TestDurableHandlerUnderFire(t *testing.T) {
	t.Parallel()
	for i, policy := range []Policy{BlockKey, SkipKey} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			t.Parallel()
			const each, kills = 21, 6
			f := setUp(t, []testkit.Server{testkit.PG18, testkit.PgBouncer}[i])
			e := f.effectsTable()
			keys := names("k", 30)
			spec := durableSpec{Database: testkit.AddressOf(f.as(testkit.Relay)), Schema: f.schema, Policy: policy,
				Lease: 400 * time.Millisecond, Seed: 1 + rand.Uint64N(1<<60), Random: 10}
			t.Logf("seed %d", spec.Seed)
			random := rand.New(rand.NewPCG(spec.Seed, 1))
			tr := newTrouble(f, spec.kind)
			points := append([]string{inHandler}, durableFailpoints...)
			done := 0
			for range kills {
				f.backlogFrom(done+1, each/(kills+1), keys...)
				done += each / (kills + 1)
				spec.Point, spec.Hit, spec.Batch = points[random.IntN(len(points))], int64(1+random.IntN(30)), 1+random.IntN(20)
				child := spec.startChild(t)
				enough := e.count() + 1 + random.IntN(len(keys))
				eventually(t, func() bool { tr.decide(); return hasExited(child) || e.count() >= enough },
					"it is killed at %s, or does its share", spec.Point)
				child.Kill9()
			}
			f.backlogFrom(done+1, each-done, keys...)
			spec.Random, spec.Batch = 0, 7
			spec.goOn(e)
			tr.finished(e, keys, each, policy)
			t.Logf("%d effects, %d keys with replayed events, %d discarded", e.count(), len(tr.replayed), tr.discards())
		})
	}
}
