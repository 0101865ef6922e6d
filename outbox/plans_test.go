package outbox

import (
	"fmt"
	"os"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

// However long the log is, and whatever the planner knows of it: each statement that reads
// the log, the links or what is parked goes along the index that it was written for,
// and through as many rows as it needs. The statements are those of the code, and the
// plans those by which the server has run them. A log of five million events takes some
// minutes:
//
//	POSTBUS_TEST_LONG=1 go test -run TestPlansDoNotDependOnStatistics -timeout 20m ./outbox
func TestPlansDoNotDependOnStatistics(t *testing.T) {
	t.Parallel()
	type log struct {
		which testkit.Server
		n     int64
	}
	logs := []log{{testkit.PG15, 0}, {testkit.PG18, 0}, {testkit.PG15, 1_000_000}, {testkit.PG18, 1_000_000}}
	if os.Getenv("POSTBUS_TEST_LONG") != "" {
		logs = append(logs, log{testkit.PG15, 5_000_000})
	}
	for _, l := range logs {
		t.Run(fmt.Sprint(l.which, " ", l.n), func(t *testing.T) {
			t.Parallel()
			f := planFixture(t, l.which, int(l.n))
			i := 0
			for _, known := range []string{"nothing", "emptiness", "analyzed", "one transaction", "many transactions"} {
				for _, mode := range []string{"custom", "generic"} {
					t.Run(known+", "+mode+" plans", func(t *testing.T) {
						f := *f
						f.t = t
						f.know(known)
						g, w := f.watched(l.which, mode)
						a := &asking{fixture: g, plain: &f, which: l.which, n: l.n, i: i}
						i++
						seen := map[string]bool{}
						plans := w.during(t, func() { a.all(t) })
						positions := f.count(`SELECT count(*) FROM ` + f.table("relay"))
						for _, p := range plans {
							if of := p.holds(t, l.n, positions); of != nil {
								seen[of.what] = true
							}
						}
						for _, p := range pins {
							if !seen[p.what] && l.n > 0 {
								t.Errorf("%s: it was not asked", p.what)
							}
						}
					})
				}
			}
		})
	}
}
