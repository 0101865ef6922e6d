package outbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
)

// long makes the tests that draw at random go on for longer: POSTBUS_TEST_LONG=1.
var long = os.Getenv("POSTBUS_TEST_LONG") != ""

// ledger is what the writers know, kept by Postgres itself: a row per event,
// written in the same transaction, and the same savepoint, as the event.
type ledger struct{ f *fixture }

func newLedger(f *fixture, aggregates int) *ledger {
	f.t.Helper()
	for _, sql := range []string{
		`CREATE TABLE ` + f.table("aggregate") + ` (key text PRIMARY KEY, version int NOT NULL DEFAULT 0)`,
		`CREATE TABLE ` + f.table("written") + ` (key text NOT NULL, n int NOT NULL, event_id uuid PRIMARY KEY)`,
		`CREATE TABLE ` + f.table("elsewhere") + ` (at timestamptz DEFAULT now())`,
		// Links are pruned; who took over from whom is not.
		`CREATE TABLE ` + f.table("holders") + ` (n bigint, holder uuid)`,
		`CREATE FUNCTION ` + f.table("note_holder") + `() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN INSERT INTO ` + f.table("holders") + ` VALUES (new.n, new.holder); RETURN new; END $$`,
		`CREATE TRIGGER note_holder AFTER INSERT ON ` + f.table("relay_link") + ` FOR EACH ROW EXECUTE FUNCTION ` + f.table("note_holder") + `()`,
	} {
		f.exec(sql)
	}
	testkit.GrantAll(f.t, f.pool, f.table("aggregate"), f.table("written"), f.table("elsewhere"), f.table("holders"))
	f.exec(`INSERT INTO `+f.table("aggregate")+` SELECT 'a' || lpad(i::text, 2, '0') FROM generate_series(1, $1) i`, aggregates)
	return &ledger{f}
}

func (f *fixture) exec(sql string, args ...any) {
	f.t.Helper()
	if _, err := f.pool.Exec(context.Background(), sql, args...); err != nil {
		f.t.Fatalf("%s: %v", sql, err)
	}
}

// write appends the next event of key, whose row tx has locked or locks now.
func (l *ledger) write(ctx context.Context, tx pgx.Tx, key string) error {
	var n int
	if err := tx.QueryRow(ctx, `UPDATE `+l.f.table("aggregate")+` SET version = version + 1 WHERE key = $1 RETURNING version`, key).Scan(&n); err != nil {
		return err
	}
	e := event(key, n)
	if err := l.f.log.Append(ctx, tx, e); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO `+l.f.table("written")+` VALUES ($1, $2, $3)`, key, n, e.EventID.String())
	return err
}

func (l *ledger) committed() int { return l.f.count(`SELECT count(*) FROM ` + l.f.table("written")) }

// takeovers counts how often the position changed hands.
func (l *ledger) takeovers() int {
	return l.f.count(`SELECT count(*) FROM (SELECT holder IS DISTINCT FROM lag(holder) OVER (ORDER BY n) AS other FROM ` + l.f.table("holders") + `) AS h WHERE other`)
}

// arrival is one message as it came in at the broker.
type arrival struct {
	key string
	n   int
	id  uuid.UUID
}

// broker is a sink outside of the relays' processes: it takes whole batches, in
// the order in which they come in, and never refuses or times out.
type broker struct {
	t        testing.TB
	listener net.Listener
	serving  sync.WaitGroup

	mu       sync.Mutex
	arrivals []arrival
	distinct map[uuid.UUID]struct{}
	batches  int
	from     int // pid of the latest batch's sender
}

func newBroker(t testing.TB) *broker {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t, listener: l, distinct: map[uuid.UUID]struct{}{}}
	b.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b.serving.Go(func() { b.serve(conn) })
		}
	})
	return b
}

// close returns when the connections are gone: end the children before.
func (b *broker) close() {
	b.listener.Close()
	b.serving.Wait()
}

// A frame: sender's pid, number of messages, and for each n, id, key. All of it is
// read before anything of it counts: a killed sender's half frame never arrived.
func (b *broker) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		pid, count := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
		batch := make([]arrival, count)
		for i := range batch {
			var fixed [21]byte
			if _, err := io.ReadFull(r, fixed[:]); err != nil {
				return
			}
			key := make([]byte, fixed[20])
			if _, err := io.ReadFull(r, key); err != nil {
				return
			}
			batch[i] = arrival{string(key), int(binary.BigEndian.Uint32(fixed[:])), uuid.UUID(fixed[4:20])}
		}
		b.mu.Lock()
		b.arrivals = append(b.arrivals, batch...)
		for _, a := range batch {
			b.distinct[a.id] = struct{}{}
		}
		b.batches, b.from = b.batches+1, int(pid)
		b.mu.Unlock()
		if _, err := conn.Write([]byte{1}); err != nil {
			return
		}
	}
}

func (b *broker) state() (distinct, batches, from int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.distinct), b.batches, b.from
}

// brokerClient is the publisher of a child process.
type brokerClient struct {
	address string
	mu      sync.Mutex
	idle    []net.Conn
}

func (c *brokerClient) BatchContract() BatchContract {
	return BatchContract{StopsKeyAtFirstFailure: true}
}
func (c *brokerClient) Publish(string, ...*message.Message) error { panic("one batch call only") }
func (c *brokerClient) Close() error                              { return nil }

func (c *brokerClient) PublishBatch(ctx context.Context, msgs []*Message, results []Result) {
	if ctx.Err() != nil {
		return // the process was frozen: nothing is sent behind the deadline
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(os.Getpid()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(msgs)))
	for _, m := range msgs {
		b = binary.BigEndian.AppendUint32(b, uint32(numberOf(m.Payload)))
		b = append(b, m.EventID[:]...)
		b = append(append(b, byte(len(m.Key))), m.Key...)
	}
	r := Result{Status: Done}
	if err := c.roundTrip(ctx, b); err != nil {
		r = Result{Unknown, err}
	}
	for i := range results {
		results[i] = r
	}
}

func (c *brokerClient) roundTrip(ctx context.Context, frame []byte) error {
	conn, err := c.take()
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err = conn.Write(frame); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if err != nil {
		conn.Close()
		return err
	}
	c.mu.Lock()
	c.idle = append(c.idle, conn)
	c.mu.Unlock()
	return nil
}

func (c *brokerClient) take() (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.idle); n > 0 {
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return conn, nil
	}
	return net.DialTimeout("tcp4", c.address, 5*time.Second)
}

// verdict is what the oracle found.
type verdict struct {
	events, lost, phantom, disorder, repeats int
}

// judge compares what was committed with what arrived. Per aggregate the first
// deliveries must be 1, 2, 3, .. to the committed version.
func (l *ledger) judge(b *broker) (v verdict) {
	l.f.t.Helper()
	rows, err := l.f.pool.Query(context.Background(), `SELECT key, n, event_id::text FROM `+l.f.table("written"))
	if err != nil {
		l.f.t.Fatal(err)
	}
	committed := map[uuid.UUID]arrival{}
	versions := map[string]int{}
	var a arrival
	var id string
	if _, err := pgx.ForEachRow(rows, []any{&a.key, &a.n, &id}, func() error {
		a.id = uuid.MustParse(id)
		committed[a.id] = a
		versions[a.key]++
		return nil
	}); err != nil {
		l.f.t.Fatal(err)
	}
	v.events = len(committed)
	b.mu.Lock()
	defer b.mu.Unlock()
	first := map[string][]int{}
	seen := map[uuid.UUID]bool{}
	for _, a := range b.arrivals {
		if seen[a.id] {
			v.repeats++
			continue
		}
		seen[a.id] = true
		if committed[a.id] != a {
			v.phantom++
			continue
		}
		first[a.key] = append(first[a.key], a.n)
	}
	for id := range committed {
		if !seen[id] {
			v.lost++
		}
	}
	for key, version := range versions {
		want := make([]int, version)
		for i := range want {
			want[i] = i + 1
		}
		if !slices.Equal(first[key], want) {
			v.disorder++
			l.f.t.Errorf("aggregate %s: first deliveries %v, want 1 to %d", key, shortened(first[key]), version)
		}
	}
	return v
}

// shortened shows where a list stops to be 1, 2, 3, ...
func shortened(ns []int) string {
	for i, n := range ns {
		if n != i+1 {
			return fmt.Sprintf("1 to %d, then %v", i, ns[i:min(len(ns), i+10)])
		}
	}
	return fmt.Sprintf("1 to %d", len(ns))
}
