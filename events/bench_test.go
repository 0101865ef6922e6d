package events

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// order is what the tests publish; its document takes about 600 bytes, which is
// also what the design's measurements were made with.
type order struct {
	OrderID    string   `json:"order_id"`
	TotalCents int64    `json:"total_cents"`
	Note       string   `json:"note,omitempty"`
	Lines      []string `json:"lines,omitempty"`
}

func (order) EventType() string     { return "order.placed" }
func (order) SchemaVersion() int    { return 2 }
func (o order) AggregateID() string { return o.OrderID }

var sample = order{
	OrderID:    "order-000042",
	TotalCents: 129_900,
	Note:       strings.Repeat("leave it with the neighbour ", 4),
	Lines:      []string{"4 chairs, oak", "1 table, oak, 220 x 95", "8 cushions, \"grey\""},
}

var sampleTime = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// must is for what the test takes for granted.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func sampleEvent() DomainEvent {
	return must(New(context.Background(), sample))
}

func sampleEventWithMetadata() DomainEvent {
	return must(New(context.Background(), With(sample,
		Metadata(HeaderTraceParent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
		Metadata("tenant", "acme"), Metadata("user", "u-17"))))
}

func BenchmarkNew(b *testing.B) {
	ctx := context.Background()
	var p Payload = sample
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New(ctx, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendTo(b *testing.B) {
	for name, e := range map[string]DomainEvent{"plain": sampleEvent(), "metadata": sampleEventWithMetadata()} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 0, 4096)
			b.SetBytes(int64(len(must(e.Encode()))))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.AppendTo(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	e := sampleEvent()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for name, e := range map[string]DomainEvent{"plain": sampleEvent(), "metadata": sampleEventWithMetadata()} {
		b.Run(name, func(b *testing.B) {
			document := must(e.Encode())
			b.SetBytes(int64(len(document)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Decode(document); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The reader of scan.go beside encoding/json's.
func BenchmarkScan(b *testing.B) {
	data := sampleEvent().Data
	b.Run("scanValue", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			scanValue(data, 0, MaxDepth)
		}
	})
	b.Run("json.Valid", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			json.Valid(data)
		}
	})
}

func BenchmarkTyped(b *testing.B) {
	e := sampleEvent()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Typed[order](e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		NewID()
	}
}

func BenchmarkNewIDParallel(b *testing.B) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			NewID()
		}
	})
}

func BenchmarkIdempotencyKey(b *testing.B) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
	b.ReportAllocs()
	for b.Loop() {
		IdempotencyKey("order-000042", "place", at)
	}
}

// What AppendTo does not allocate, a batch of a thousand events does not either.
func TestAppendToAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 4096)
	for name, e := range map[string]DomainEvent{"plain": sampleEvent(), "metadata": sampleEventWithMetadata()} {
		if n := testing.AllocsPerRun(100, func() { _, _ = e.AppendTo(buf) }); n != 0 {
			t.Errorf("%s: AppendTo allocates %v times, want none", name, n)
		}
		if n := testing.AllocsPerRun(100, func() { _, _ = e.Encode() }); n != 1 {
			t.Errorf("%s: Encode allocates %v times, want the document alone", name, n)
		}
	}
}

func TestNewIDAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(2000, func() { NewID() }); n != 0 {
		t.Errorf("NewID allocates %v times, want none", n)
	}
}

func TestDecodeAllocatesTextsAndDataAlone(t *testing.T) {
	document := must(sampleEvent().Encode())
	if n := testing.AllocsPerRun(100, func() { _, _ = Decode(document) }); n != 2 {
		t.Errorf("Decode allocates %v times, want 2: the texts and the data", n)
	}
}
