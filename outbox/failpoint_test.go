package outbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/internal/failpoint"
	"github.com/postbus/postbus/internal/testkit"
)

func init() { testkit.RegisterChild("relay at a failpoint", childAtFailpoint) }

// childSpec is what a relay process is told. It kills itself with SIGKILL when it
// hits the point for the Hit-th time, and stops cleanly on SIGTERM.
type childSpec struct {
	Database, Schema, Broker string
	Point                    string
	Hit                      int64
	Policy                   Policy
	Window                   int
	Attempts                 int
	Lease                    time.Duration
	PerKey                   bool // the batch contract without StopsKeyAtFirstFailure
}

func childAtFailpoint(args []string) {
	var spec childSpec
	if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
		panic(err)
	}
	var hits atomic.Int64
	failpoint.Set(func(name string) {
		if name == spec.Point && hits.Add(1) == spec.Hit {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	pool, err := pgxpool.New(ctx, spec.Database)
	if err != nil {
		panic(err)
	}
	relay, err := NewRelay(pool, &remoteSink{addr: spec.Broker, contract: BatchContract{StopsKeyAtFirstFailure: !spec.PerKey}}, spec.config())
	if err != nil {
		panic(err)
	}
	if err := relay.Run(ctx); err != nil {
		panic(err)
	}
}

func (s childSpec) config() RelayConfig {
	return RelayConfig{Name: "test", Schema: s.Schema, Policy: s.Policy, Window: s.Window, Lease: s.Lease, PollInterval: 50 * time.Millisecond,
		Lanes: 3, Batch: 5, DrainTimeout: 5 * time.Second,
		Retry:  RetryConfig{Initial: 2 * time.Millisecond, Max: 20 * time.Millisecond, MaxAttempts: s.Attempts},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
}

// remoteSink is a publisher whose broker lives in the test's process, so that it
// survives the kills: one line of JSON for a call, one for its answer.
type remoteSink struct {
	addr     string
	contract BatchContract
	idle     sync.Pool // of net.Conn
}

type wireResult struct {
	Status Status
	Err    string
}

func (r *remoteSink) BatchContract() BatchContract { return r.contract }
func (r *remoteSink) Publish(string, ...*message.Message) error {
	panic("the relay prefers the batch call")
}
func (r *remoteSink) Close() error { return nil }

func (r *remoteSink) PublishBatch(ctx context.Context, msgs []*Message, results []Result) {
	conn, _ := r.idle.Get().(net.Conn)
	if conn == nil {
		var err error
		if conn, err = net.Dial("tcp", r.addr); err != nil {
			for i := range results {
				results[i] = Result{Passing, fmt.Errorf("%w: %w", ErrUnavailable, err)}
			}
			return
		}
	}
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	var answers []wireResult
	err := json.NewEncoder(conn).Encode(msgs)
	if err == nil {
		err = json.NewDecoder(conn).Decode(&answers)
	}
	if err != nil {
		conn.Close()
		for i := range results {
			results[i] = Result{Unknown, err}
		}
		return
	}
	r.idle.Put(conn)
	for i, a := range answers {
		results[i].Status = a.Status
		if a.Err != "" {
			results[i].Err = errors.New(a.Err)
		}
	}
}

// serve makes s a broker for other processes until the test ends.
func (s *sink) serve(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			serving.Go(func() {
				defer conn.Close()
				in, out := json.NewDecoder(bufio.NewReader(conn)), json.NewEncoder(conn)
				for {
					var msgs []*Message
					if in.Decode(&msgs) != nil {
						return
					}
					results := make([]Result, len(msgs))
					s.PublishBatch(context.Background(), msgs, results)
					answers := make([]wireResult, len(msgs))
					for i, r := range results {
						if answers[i].Status = r.Status; r.Err != nil {
							answers[i].Err = r.Err.Error()
						}
					}
					if out.Encode(answers) != nil {
						return
					}
				}
			})
		}
	})
	return l.Addr().String()
}

// trouble is a rule by which some events fail, and the person who replays or
// discards what was given up of them.
type trouble struct {
	f *fixture
	// kind tells what is wrong with an event: 0 nothing, 1 two attempts fail, 2 all
	// fail until it is replayed, 3 refused for good until it is replayed, 4 refused
	// for good, and discarded.
	kind func(key string, n int) int

	mu        sync.Mutex
	tries     map[string]int
	healed    map[string]bool
	asked     map[int64]bool
	replayed  map[string]map[int]bool // by key
	discarded map[string]map[int]bool
}

func newTrouble(f *fixture, kind func(key string, n int) int) *trouble {
	return &trouble{f: f, kind: kind, tries: map[string]int{}, healed: map[string]bool{}, asked: map[int64]bool{},
		replayed: map[string]map[int]bool{}, discarded: map[string]map[int]bool{}}
}

func (tr *trouble) rule(m *Message, n int) Result {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	id := fmt.Sprint(m.Key, "/", n)
	tr.tries[id]++
	switch kind := tr.kind(m.Key, n); {
	case kind == 1 && tr.tries[id] <= 2, kind == 2 && !tr.healed[id]:
		return Result{Passing, errRefused}
	case kind == 3 && !tr.healed[id], kind == 4:
		return Result{Permanent, errRefused}
	}
	return Result{Status: Done}
}

// decide does what a person at the desk does: once for each event given up.
func (tr *trouble) decide() {
	tr.f.t.Helper()
	all, err := tr.f.desk().Parked(context.Background(), ParkedFilter{}, 0, 10_000)
	if err != nil {
		tr.f.t.Fatal(err)
	}
	for _, e := range all {
		if e.State != ParkedGivenUp || tr.asked[e.LogID] {
			continue
		}
		if len(tr.asked)%4 == 0 { // and now and then the relay itself is steered, to where it is going anyway
			if _, err := tr.f.pool.Exec(context.Background(), `INSERT INTO `+tr.f.table("relay_request")+` (relay, action) VALUES ('test', 'rate')`); err != nil {
				tr.f.t.Fatal(err)
			}
		}
		tr.asked[e.LogID] = true
		var n int
		var payload []byte
		if err := tr.f.pool.QueryRow(context.Background(), `SELECT payload FROM `+tr.f.table("parked")+` WHERE log_id = $1`, e.LogID).Scan(&payload); err != nil {
			tr.f.t.Fatal(err)
		}
		n = numberOf(payload)
		note := func(in map[string]map[int]bool) {
			if in[e.Key] == nil {
				in[e.Key] = map[int]bool{}
			}
			in[e.Key][n] = true
		}
		if tr.kind(e.Key, n) == 4 {
			note(tr.discarded)
			err = tr.f.desk().Discard(context.Background(), e.LogID)
		} else {
			tr.mu.Lock()
			tr.healed[fmt.Sprint(e.Key, "/", n)] = true
			tr.mu.Unlock()
			note(tr.replayed)
			err = tr.f.desk().Replay(context.Background(), e.LogID)
		}
		if err != nil {
			tr.f.t.Fatal(err)
		}
	}
}

func (tr *trouble) discards() (n int) {
	for _, of := range tr.discarded {
		n += len(of)
	}
	return n
}

// verify is the oracle, once all is drained: of each key 1 to n, in order, but for
// the discarded; under SkipKey the replayed may come later.
func (tr *trouble) verify(s *sink, keys []string, n int, policy Policy, maxRepeats int) {
	t := tr.f.t
	t.Helper()
	for _, k := range keys {
		got := s.of(k)
		var want, inOrder []int
		for i := 1; i <= n; i++ {
			if !tr.discarded[k][i] {
				want = append(want, i)
			}
		}
		for _, i := range got {
			if policy == BlockKey || !tr.replayed[k][i] {
				inOrder = append(inOrder, i)
			}
		}
		if !slices.IsSorted(inOrder) {
			t.Errorf("key %s: out of order: %v (replayed: %v)", k, got, tr.replayed[k])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("key %s: delivered %v, want %v (discarded: %v)", k, got, want, tr.discarded[k])
		}
	}
	if s.repeats > maxRepeats {
		t.Errorf("%d repeats, want %d at most", s.repeats, maxRepeats)
	}
	if left := tr.f.count(`SELECT count(*) FROM ` + tr.f.table("parked") + ` WHERE state <> 'discarded'`); left != 0 {
		t.Errorf("%d events are still parked", left)
	}
	// Each request was carried out, once, and found what it was asked for.
	if odd := tr.f.count(`SELECT count(*) FROM ` + tr.f.table("relay_request") + ` WHERE outcome IS NULL OR outcome NOT IN ('replayed', 'discarded', 'as fast as it can')`); odd != 0 {
		t.Errorf("%d requests were not carried out as asked", odd)
	}
}

func (tr *trouble) drain(s *sink, total int) {
	tr.f.t.Helper()
	testkit.Eventually(tr.f.t, 40*time.Second, func() bool {
		tr.decide()
		return s.distinct() >= total-tr.discards() &&
			tr.f.count(`SELECT count(*) FROM `+tr.f.table("parked")+` WHERE state <> 'discarded'`) == 0
	}, "all is delivered or discarded")
}

// The relay is killed at each instruction of the list, under each policy, while
// events fail, are put aside, replayed and discarded; a successor goes on.
func TestKilledAtEveryFailpoint(t *testing.T) {
	t.Parallel()
	for i, point := range failpoints {
		for _, policy := range []Policy{BlockKey, SkipKey} {
			t.Run(fmt.Sprint(point, "/policy ", policy), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, testkit.PG15)
				s := newSink()
				keys := names("k", 12)
				tr := newTrouble(f, func(key string, n int) int {
					k, _ := strconv.Atoi(key[1:])
					if k < 4 && n == k+1 {
						return k + 1
					}
					return 0
				})
				s.setRule(tr.rule)
				spec := childSpec{Database: testkit.AddressOf(f.as(testkit.Relay)), Schema: f.schema, Broker: s.serve(t),
					Point: point, Hit: 1, Policy: policy, Window: 16, Attempts: 4, Lease: 400 * time.Millisecond, PerKey: (i+int(policy))%2 == 0}
				s.contract.StopsKeyAtFirstFailure = !spec.PerKey
				switch point {
				// Not more often than it is hit at least: a busy machine notes much in one link.
				case fpRoundLinked, fpBeforeLink, fpAfterLink:
					spec.Hit = 2
				case fpBeforePublish, fpAfterPublish:
					spec.Hit = 4
				}
				f.backlog(3, keys...)
				args, _ := json.Marshal(spec)
				child := testkit.StartChild(t, "relay at a failpoint", string(args))
				eventually(t, func() bool { // in the middle of the work, or killed before it
					select {
					case <-child.Exited():
						return true
					default:
						return s.distinct() > 12
					}
				}, "it works")
				for n := 4; n <= 6; n++ {
					for _, k := range keys {
						f.add(k, n, 1)
					}
				}
				if point == fpBeforeHandover {
					child.Signal(syscall.SIGTERM)
				}
				eventually(t, func() bool {
					tr.decide()
					select {
					case <-child.Exited():
						return true
					default:
						return false
					}
				}, "the point is reached")
				if err := child.Wait(time.Second); err == nil || err.Error() != "signal: killed" {
					t.Errorf("it ended otherwise: %v", err)
				}
				f.start(&remoteSink{addr: spec.Broker, contract: BatchContract{StopsKeyAtFirstFailure: !spec.PerKey}}, spec.config())
				tr.drain(s, 6*len(keys))
				// A kill repeats at most the window, and what was parked and sent, but not completed.
				tr.verify(s, keys, 6, policy, spec.Window+6)
			})
		}
	}
}

// One event in a hundred fails, in all ways; relays die at random points of their
// work and take over from each other, replays run beside the stream.
func TestParkingUnderFire(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{BlockKey, SkipKey} {
		t.Run(fmt.Sprint("policy ", policy), func(t *testing.T) {
			t.Parallel()
			const each, kills = 30, 6
			f := setUp(t, testkit.PG15)
			s := newSink()
			keys := names("k", 30)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 1))
			tr := newTrouble(f, func(key string, n int) int {
				h := fnv.New32a()
				fmt.Fprint(h, key, n, seed)
				if x := h.Sum32() % 200; x < 8 {
					return int(x%4) + 1
				}
				return 0
			})
			s.setRule(tr.rule)
			broker := s.serve(t)
			perKill := each / (kills + 1)
			done := 0
			for range kills {
				f.backlogFrom(done+1, perKill, keys...)
				done += perKill
				spec := childSpec{Database: testkit.AddressOf(f.as(testkit.Relay)), Schema: f.schema, Broker: broker,
					Point: failpoints[random.IntN(len(failpoints))], Hit: int64(1 + random.IntN(8)), Policy: policy,
					Window: 32, Attempts: 4, Lease: 400 * time.Millisecond, PerKey: random.IntN(2) == 0}
				args, _ := json.Marshal(spec)
				child := testkit.StartChild(t, "relay at a failpoint", string(args))
				enough := s.distinct() + 1 + random.IntN(perKill*len(keys)/2)
				eventually(t, func() bool {
					tr.decide()
					select {
					case <-child.Exited():
						return true
					default:
						return s.distinct() >= enough
					}
				}, "it is killed at %s, or does its share", spec.Point)
				child.Kill9()
			}
			f.backlogFrom(done+1, each-done, keys...)
			spec := childSpec{Schema: f.schema, Policy: policy, Window: 32, Attempts: 4, Lease: 400 * time.Millisecond}
			f.start(&remoteSink{addr: broker, contract: BatchContract{StopsKeyAtFirstFailure: true}}, spec.config())
			tr.drain(s, each*len(keys))
			tr.verify(s, keys, each, policy, kills*(spec.Window+10))
			t.Logf("%d events, %d replayed keys, %d discarded, %d repeats", s.distinct(), len(tr.replayed), tr.discards(), s.repeats)
		})
	}
}

// backlogFrom is backlog with numbers from first on.
func (f *fixture) backlogFrom(first, n int, keys ...string) {
	f.t.Helper()
	for i := range n {
		for _, k := range keys {
			f.add(k, first+i, 1)
		}
	}
}
