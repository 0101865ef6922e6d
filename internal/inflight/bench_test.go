package inflight

import (
	"context"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

var payload = make([]byte, 600)

func build(int, int) *message.Message {
	m := message.NewMessage("0190b5a1-0000-7000-8000-000000000000", payload)
	m.Metadata["postbus_event_type"] = "order.placed"
	return m
}

// BenchmarkPlainContract is the least that Watermill's contract costs: a
// message, an unbuffered channel, an ack that is waited for before the next one.
func BenchmarkPlainContract(b *testing.B) {
	out := make(chan *message.Message)
	go func() {
		for m := range out {
			m.Ack()
		}
	}()
	b.ReportAllocs()
	reportCPU(b)
	for i := range b.N {
		m := build(i, 1)
		out <- m
		select {
		case <-m.Acked():
		case <-m.Nacked():
		}
	}
	close(out)
}

// BenchmarkWindowedContract has 1,000 messages under way, each waited for by
// the reader itself in the order of sending: no keys, no repeats, no end.
func BenchmarkWindowedContract(b *testing.B) {
	out := make(chan *message.Message, 1000)
	go func() {
		for m := range out {
			m.Ack()
		}
	}()
	b.ReportAllocs()
	reportCPU(b)
	window := make([]*message.Message, 0, 1000)
	for i := range b.N {
		m := build(i, 1)
		out <- m
		if window = append(window, m); len(window) == cap(window) || i == b.N-1 {
			for _, m := range window {
				select {
				case <-m.Acked():
				case <-m.Nacked():
				}
			}
			window = window[:0]
		}
	}
	close(out)
}

func BenchmarkRoom(b *testing.B) {
	for _, n := range []int{8, 64, 512} {
		for _, keys := range []int{0, 1, 10, 1000} {
			b.Run("inflight="+strconv.Itoa(n)+"/keys="+strconv.Itoa(keys), func(b *testing.B) {
				r := New(context.Background(), Config[int]{Build: build, MaxInFlight: n, MaxBuffered: 10000})
				b.ReportAllocs()
				reportCPU(b)
				carry(b, r, keys, func() {
					for m := range r.Out() {
						m.Ack()
					}
				})
			})
		}
	}
}

// carry offers b.N deliveries in batches of 1,000, as a fetch of Kafka would.
func carry(b *testing.B, r *Room[int], keys int, consume func()) {
	go consume()
	names := make([]string, max(keys, 1))
	for i := range keys {
		names[i] = "customer-" + strconv.Itoa(i)
	}
	batch := make([]Delivery[int], 0, 1000)
	got := 0
	var results []Result[int]
	take := func() {
		results = r.Take(results[:0])
		got += len(results)
	}
	for i := 0; i < b.N; {
		batch = batch[:0]
		for len(batch) < cap(batch) && i < b.N {
			batch = append(batch, Delivery[int]{Key: names[i%len(names)], Size: 600, Token: i})
			i++
		}
		if _, err := r.Offer(context.Background(), batch); err != nil {
			b.Fatal(err)
		}
		take()
	}
	for got < b.N {
		<-r.Changed()
		take()
	}
	b.StopTimer()
	r.Close()
}

// A handler of one millisecond, 1,000 keys, beside as many goroutines that just
// take from a channel.
func BenchmarkSlowHandler(b *testing.B) {
	for _, n := range []int{8, 64} {
		b.Run("pool/inflight="+strconv.Itoa(n), func(b *testing.B) {
			work := make(chan *message.Message)
			var all sync.WaitGroup
			for range n {
				all.Go(func() {
					for m := range work {
						time.Sleep(time.Millisecond)
						m.Ack()
					}
				})
			}
			reportCPU(b)
			b.ResetTimer()
			for i := range b.N {
				work <- build(i, 1)
			}
			close(work)
			all.Wait()
		})
		b.Run("room/inflight="+strconv.Itoa(n), func(b *testing.B) {
			r := New(context.Background(), Config[int]{Build: build, MaxInFlight: n, MaxBuffered: 10000})
			reportCPU(b)
			b.ResetTimer()
			carry(b, r, 1000, func() {
				for m := range r.Out() {
					go func() {
						time.Sleep(time.Millisecond)
						m.Ack()
					}()
				}
			})
		})
	}
}

// reportCPU adds what a message costs on all cores together: on a machine that
// others use, too, that says more than the time.
func reportCPU(b *testing.B) {
	start := cpuTime()
	b.Cleanup(func() { b.ReportMetric(float64(cpuTime()-start)/float64(b.N), "cpu-ns/op") })
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
