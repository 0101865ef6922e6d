package bus

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
)

// discard is a log that keeps nothing: what is measured is the bus alone.
type discard struct{}

func (discard) Append(context.Context, pgx.Tx, ...events.DomainEvent) error { return nil }
func (discard) Wake()                                                       {}
func (discard) Hint()                                                       {}
func (discard) Schema() string                                              { return "postbus" }

// offlineTx is a transaction without a server.
type offlineTx struct{ pgx.Tx }

func (offlineTx) Conn() *pgx.Conn                { return nil }
func (offlineTx) Commit(context.Context) error   { return nil }
func (offlineTx) Rollback(context.Context) error { return pgx.ErrTxClosed }

type offlineDB struct{}

func (offlineDB) BeginTx(context.Context, pgx.TxOptions) (pgx.Tx, error) { return offlineTx{}, nil }

// BenchmarkPublish is one Publish with a handler of each kind, in an InTx that
// talks to no server.
func BenchmarkPublish(b *testing.B) {
	eventBus, err := newBus(discard{}, Config{})
	if err != nil {
		b.Fatal(err)
	}
	calls := 0
	SubscribeInTx(eventBus, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { calls++; return nil })
	SubscribeAfterCommit(eventBus, func(context.Context, events.Event[orderPlaced]) error { calls++; return nil })
	publish := func(ctx context.Context, tx pgx.Tx) error { return eventBus.Publish(ctx, tx, orderPlaced{"1", 100}) }
	b.ReportAllocs()
	for b.Loop() {
		if err := InTx(context.Background(), offlineDB{}, publish); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCallInTx is the way from the plain core to one typed handler.
func BenchmarkCallInTx(b *testing.B) {
	calls := 0
	eventBus, err := newBus(discard{}, Config{})
	if err != nil {
		b.Fatal(err)
	}
	h := SubscribeInTx(eventBus, func(context.Context, pgx.Tx, events.Event[orderPlaced]) error { calls++; return nil })
	ctx := context.Background()
	e, err := events.New(ctx, order(1))
	if err != nil {
		b.Fatal(err)
	}
	data, envelope, err := h.open(order(1), e)
	if err != nil {
		b.Fatal(err)
	}
	o := &occurrence{envelope: envelope, data: data}
	b.ReportAllocs()
	for b.Loop() {
		if err := h.call(ctx, o.to(h, nil)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClockAndUUID is what a Dispatch is measured against: a loop that reads
// the clock and makes a UUIDv7 of entropy fetched in blocks.
func BenchmarkClockAndUUID(b *testing.B) {
	var entropy [4096]byte
	left := 0
	var id uuid.UUID
	var at time.Time
	b.ReportAllocs()
	for b.Loop() {
		if left < 10 {
			_, _ = rand.Read(entropy[:])
			left = len(entropy)
		}
		at = time.Now()
		binary.BigEndian.PutUint64(id[:8], uint64(at.UnixMilli())<<16)
		copy(id[6:], entropy[len(entropy)-left:][:10])
		left -= 10
		id[6] = id[6]&0x0f | 0x70
		id[8] = id[8]&0x3f | 0x80
	}
	if id.Version() != 7 || at.IsZero() {
		b.Fatal(id)
	}
}

// BenchmarkDispatch is one Dispatch to one handler, and to more.
func BenchmarkDispatch(b *testing.B) {
	for _, handlers := range []int{1, 2, 11} {
		b.Run(strconv.Itoa(handlers), func(b *testing.B) {
			l, err := NewLocal(LocalConfig{})
			if err != nil {
				b.Fatal(err)
			}
			calls := 0
			for range handlers {
				Subscribe(l, func(context.Context, events.Event[orderPlaced]) error { calls++; return nil })
			}
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				if err := Dispatch(ctx, l, orderPlaced{"1", 100}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
