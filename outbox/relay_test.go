package outbox

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/events"
	"github.com/postbus/postbus/internal/testkit"
)

func TestEveryCommittedEventIsPublishedInOrder(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for _, batches := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/batches=%v", which, batches), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, which)
				s := newSink()
				var p message.Publisher = s
				if !batches {
					p = plain{stock{s}}
				}
				const keys, each = 7, 40
				for i := range each {
					var evs []events.DomainEvent
					for k := range keys {
						evs = append(evs, event(fmt.Sprint("k", k), i+1))
					}
					f.tx(func(tx pgx.Tx) error { return f.log.Append(t.Context(), tx, evs...) })
					if i == each/2 {
						f.start(p, f.config())
					}
				}
				testkit.Eventually(t, 20*time.Second, func() bool { return s.distinct() == keys*each }, "all delivered")
				for k := range keys {
					s.inOrder(t, fmt.Sprint("k", k), each)
				}
				if s.repeats != 0 {
					t.Errorf("%d repeats without a crash", s.repeats)
				}
			})
		}
	}
}
