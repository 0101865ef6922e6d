package rabbitmq

import (
	"sync"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
	"github.com/postbus/postbus/outbox"
)

// A quorum queue forgets acknowledgements that its channel still holds when it
// closes. Pausing before that, a busy consumer's close repeats nothing; a server
// that stalls just then may still cause one.
func TestCloseOfABusyConsumerRepeatsNothing(t *testing.T) {
	const keys, each, closes, stalls = 1000, 12, 8, 2
	for name, single := range map[string]bool{"several consumers": false, "single active consumer": true} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			q := testkit.Name(t)
			declare(t, Topology{Queues: []Queue{{Name: q, SingleActiveConsumer: single}}})
			p := newPublisher(t, PublisherConfig{Kind: DefaultExchange})
			for n := range each {
				msgs := make([]*outbox.Message, keys)
				for k := range msgs {
					msgs[k] = outboxMessage(q, string(rune(0x4e00+k)), n)
				}
				allDone(t, publishBatch(p, msgs...))
			}
			var mu sync.Mutex
			times := make(map[string]int)
			repeating, repeats := 0, 0 // closes, messages
			for i := range closes {
				s := newSubscriber(t, SubscriberConfig{MaxInFlight: 64, Prefetch: 300})
				ch := subscribe(t, s, q)
				target := keys * each * (i + 1) / closes
				before := repeats
				reached := make(chan struct{})
				var handlers sync.WaitGroup
				for range 4 {
					handlers.Go(func() {
						for m := range ch {
							mu.Lock()
							if times[m.UUID]++; times[m.UUID] > 1 {
								repeats++
							}
							if times[m.UUID] == 1 && len(times) == target {
								close(reached)
							}
							mu.Unlock()
							m.Ack()
						}
					})
				}
				<-reached
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				handlers.Wait()
				if repeats > before {
					repeating++
				}
			}
			if repeating > stalls {
				t.Errorf("%d of %d closes have repeated %d messages", repeating, closes, repeats)
			}
		})
	}
}
