package outbox

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit"
)

// A process is frozen with its transaction open, for longer than the lease: the server
// ends the transaction, a successor does not wait for it, and when it wakes up nothing
// of it counts.
func TestFrozenDurableHandlerTakesNoEffect(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PG18, testkit.PgBouncer} {
		for i, point := range []string{inHandler, fpBeforeEffects, fpAfterEffects, fpBeforeSetAside} {
			t.Run(fmt.Sprint(which, "/", point), func(t *testing.T) {
				t.Parallel()
				const lease = 1500 * time.Millisecond
				f := setUp(t, which)
				e := f.effectsTable()
				keys := names("k", 12)
				tr := newTrouble(f, fixedTrouble)
				name := "frozen_" + f.schema
				spec := durableSpec{Database: testkit.AddressOf(f.as(testkit.Relay)) + "&application_name=" + name, Schema: f.schema,
					Point: point, Hit: 3, Freeze: true, Batch: []int{1, 20}[i%2], Lease: lease}
				if point == fpBeforeSetAside || spec.Batch > 1 {
					spec.Hit = 1
				}
				f.backlog(3, keys...)
				child := spec.startChild(t)
				eventually(t, func() bool { return strings.Contains(child.Output(), freezes) }, "it stops")
				began, before := time.Now(), e.count()
				stop := spec.goOn(e)
				eventually(t, func() bool { return e.count() > before }, "a successor goes on")
				// Until the lease runs out, and the next look of who stands by; half as much for a busy machine.
				if took := time.Since(began); took > 5*lease/2 {
					t.Errorf("the successor took %s, with a lease of %s", took, lease)
				}
				// Through a pooler the name may be that of the connection's former user: the
				// successor's own transactions bear it for moments.
				eventually(t, func() bool {
					return f.count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state LIKE 'idle in transaction%'`, name) == 0
				}, "no transaction of the frozen process is open")
				e.reaches(3 * len(keys) / 2)
				child.Cont()
				f.backlogFrom(4, 3, keys...)
				tr.finished(e, keys, 6, BlockKey)
				if err := stop(); err != nil { // and the woken one goes on, from where the other was
					t.Fatal(err)
				}
				f.backlogFrom(7, 1, keys...)
				tr.finished(e, keys, 7, BlockKey)
			})
		}
	}
}

// The reply to a COMMIT is lost, or the COMMIT itself: the handler's process cannot tell,
// and each event takes effect once all the same.
func TestLostReplyOfADurableHandlersCommit(t *testing.T) {
	t.Parallel()
	for _, which := range []testkit.Server{testkit.PG15, testkit.PgBouncer} {
		for _, batch := range []int{1, 5} {
			t.Run(fmt.Sprint(which, "/batch ", batch), func(t *testing.T) {
				t.Parallel()
				f := setUp(t, which)
				e := f.effectsTable()
				keys := names("k", 12)
				tr := newTrouble(f, fixedTrouble)
				proxy := testkit.NewProxy(t, testkit.AddressOf(f.as(testkit.Relay)))
				var effects, links, lost, cut atomic.Int64
				proxy.OnClientBytes(func(b []byte) testkit.Action {
					switch {
					case bytes.HasPrefix(b, []byte("Q\x00\x00\x00\x0bCOMMIT")): // of a handler's transaction
						switch effects.Add(1) % 14 {
						case 4:
							lost.Add(1)
							return testkit.LoseReply
						case 11:
							cut.Add(1)
							return testkit.Cut
						}
					case bytes.Contains(b, []byte("COMMIT")) && links.Add(1)%100 == 17:
						return testkit.LoseReply
					}
					return testkit.Forward
				})
				address := proxy.URL()
				if which == testkit.PG15 {
					address += "&default_query_exec_mode=exec"
				}
				f.backlog(4, keys...)
				cfg := (&durableSpec{Schema: f.schema, Batch: batch, Lease: 2 * time.Second}).config()
				spec := durableSpec{Schema: f.schema}
				d, err := NewDurable(testkit.Pool(t, address), spec.handler(e, func(string) {}), cfg)
				if err != nil {
					t.Fatal(err)
				}
				f.run("durable handler", d.Run)
				tr.finished(e, keys, 4, BlockKey)
				n := 4
				for lost.Load() < 2 || cut.Load() < 2 {
					n++
					f.backlogFrom(n, 1, keys...)
					tr.finished(e, keys, n, BlockKey)
				}
			})
		}
	}
}
