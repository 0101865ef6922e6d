package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/migrations"
)

// fixture is a migrated schema of the test's own.
type fixture struct {
	t      testing.TB
	pool   *pgxpool.Pool
	schema string
	log    *Log
}

func setUp(t testing.TB, which testkit.Server) *fixture {
	t.Helper()
	f := &fixture{t: t, schema: testkit.Schema(t, which), pool: testkit.Postgres(t, which)}
	if err := migrations.Up(t.Context(), f.pool, f.schema); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.log, err = NewLog(LogConfig{Schema: f.schema}); err != nil {
		t.Fatal(err)
	}
	return f
}

// event is the n-th of its key.
func event(key string, n int) events.DomainEvent {
	return events.DomainEvent{
		EventID: events.NewID(), EventType: "order.changed", SchemaVersion: 1, AggregateID: key,
		Timestamp: time.Now(), CorrelationID: "test", Data: fmt.Appendf(nil, `{"n":%d}`, n),
	}
}

// add appends n events to key, each in a transaction of its own, numbered from first.
func (f *fixture) add(key string, first, n int) {
	f.t.Helper()
	for i := range n {
		f.tx(func(tx pgx.Tx) error { return f.log.Append(f.t.Context(), tx, event(key, first+i)) })
	}
}

func (f *fixture) tx(do func(tx pgx.Tx) error) {
	f.t.Helper()
	if err := pgx.BeginFunc(f.t.Context(), f.as(testkit.App), do); err != nil {
		f.t.Fatal(err)
	}
	f.log.Wake()
}

func (f *fixture) config() RelayConfig {
	return RelayConfig{Name: "test", Schema: f.schema, Lease: 2 * time.Second, PollInterval: 200 * time.Millisecond,
		Retry: RetryConfig{Initial: 5 * time.Millisecond, Max: 50 * time.Millisecond}, Logger: testLogger(f.t)}
}

// start runs a relay until the test ends or stop is called, which gives Run's error.
func (f *fixture) start(p message.Publisher, cfg RelayConfig) (stop func() error) {
	f.t.Helper()
	relay, err := NewRelay(f.as(testkit.Relay), p, cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- relay.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	f.t.Cleanup(func() {
		if err := stop(); err != nil {
			f.t.Errorf("relay: %v", err)
		}
	})
	return stop
}

func (f *fixture) count(sql string, args ...any) (n int) {
	f.t.Helper()
	if err := f.pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

func (f *fixture) table(name string) string { return pgx.Identifier{f.schema, name}.Sanitize() }

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, nil))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) { w.t.Logf("%s", p); return len(p), nil }

// sink is a broker that remembers. rule, if set, decides what becomes of a
// message; it may be changed while the relay runs.
type sink struct {
	mu       sync.Mutex
	got      []delivery
	byKey    map[string][]int // n of each key's first deliveries
	seen     map[string]bool
	repeats  int
	rule     atomic.Pointer[func(m *Message, n int) Result]
	contract BatchContract
}

type delivery struct {
	Message
	n int
}

func newSink() *sink {
	return &sink{byKey: map[string][]int{}, seen: map[string]bool{}, contract: BatchContract{StopsKeyAtFirstFailure: true}}
}

func (s *sink) setRule(rule func(m *Message, n int) Result) {
	if rule == nil {
		s.rule.Store(nil)
		return
	}
	s.rule.Store(&rule)
}

func numberOf(payload []byte) int {
	e, err := events.Decode(payload)
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(string(e.Data[len(`{"n":`) : len(e.Data)-1]))
	if err != nil {
		panic(err)
	}
	return n
}

func (s *sink) one(m *Message) Result {
	n := numberOf(m.Payload)
	if rule := s.rule.Load(); rule != nil {
		if r := (*rule)(m, n); r.Status != Done {
			return r
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, delivery{*m, n})
	if id := m.EventID.String(); s.seen[id] {
		s.repeats++
	} else {
		s.seen[id] = true
		s.byKey[m.Key] = append(s.byKey[m.Key], n)
	}
	return Result{Status: Done}
}

func (s *sink) PublishBatch(_ context.Context, msgs []*Message, results []Result) {
	stopped := map[string]bool{}
	for i, m := range msgs {
		if stopped[m.Key] && s.contract.StopsKeyAtFirstFailure {
			continue
		}
		if results[i] = s.one(m); results[i].Status != Done {
			stopped[m.Key] = true
		}
	}
}

func (s *sink) BatchContract() BatchContract { return s.contract }
func (s *sink) Publish(topic string, m ...*message.Message) error {
	panic("the relay prefers the batch call")
}
func (s *sink) Close() error { return nil }

func (s *sink) distinct() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

func (s *sink) of(key string) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.byKey[key]...)
}

// inOrder fails unless key's first deliveries are 1, 2, .. n.
func (s *sink) inOrder(t testing.TB, key string, n int) {
	t.Helper()
	got := s.of(key)
	if len(got) != n {
		t.Errorf("key %s: %d events delivered, want %d: %v", key, len(got), n, got)
		return
	}
	for i, v := range got {
		if v != i+1 {
			t.Errorf("key %s: first deliveries %v, want 1 to %d in order", key, got, n)
			return
		}
	}
}

// stock gives a sink as a publisher without a batch call.
type stock struct{ *sink }

func (s stock) Publish(topic string, msgs ...*message.Message) error {
	for _, w := range msgs {
		m := Message{Topic: topic, Key: w.Metadata.Get(events.HeaderPartitionKey), Payload: w.Payload}
		if err := m.EventID.UnmarshalText([]byte(w.UUID)); err != nil {
			return err
		}
		if r := s.one(&m); r.Status != Done {
			return r.Err
		}
	}
	return nil
}

// plain hides the batch call.
type plain struct {
	p interface {
		Publish(string, ...*message.Message) error
		Close() error
	}
}

func (p plain) Publish(topic string, m ...*message.Message) error { return p.p.Publish(topic, m...) }
func (p plain) Close() error                                      { return p.p.Close() }

var errRefused = errors.New("refused for now")
