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
// plans those by which the server has run them. The long form has more that the planner
// may think, and a log of five million events, which takes a minute or two:
//
//	POSTBUS_TEST_LONG=1 go test -run TestPlansDoNotDependOnStatistics -timeout 20m ./outbox
func TestPlansDoNotDependOnStatistics(t *testing.T) {
	t.Parallel()
	type log struct {
		which testkit.Server
		n     int64
	}
	logs := []log{{testkit.PG15, 0}, {testkit.PG18, 0}, {testkit.PG15, 1_000_000}, {testkit.PG18, 1_000_000}}
	states := []string{"nothing", "analyzed", "one transaction"}
	if os.Getenv("POSTBUS_TEST_LONG") != "" {
		states = append(states, "emptiness", "many transactions")
		logs = append(logs, log{testkit.PG15, 5_000_000})
	}
	for _, l := range logs {
		t.Run(fmt.Sprint(l.which, " ", l.n), func(t *testing.T) {
			t.Parallel()
			f := planFixture(t, l.which)
			a := &asking{plain: f, which: l.which, when: "an empty log, generic plans"}
			// Plans that serve for all values are kept, and here is one kind that was made
			// before there was anything.
			var w *watch
			a.fixture, w = f.watched(l.which, "generic")
			a.hold(t, w)
			if l.n > 0 {
				f.grow(int(l.n))
				a.n, a.kept, a.when = l.n, true, "plans kept from an empty log"
				a.hold(t, w)
				a.kept = false
			}
			for _, known := range states {
				for _, mode := range []string{"custom", "generic"} {
					f.know(known)
					a.fixture, w = f.watched(l.which, mode)
					a.when = known + ", " + mode + " plans"
					a.hold(t, w)
				}
			}
		})
	}
}

// hold asks all there is to ask, and holds the plans against their pins.
func (a *asking) hold(t *testing.T, w *watch) {
	t.Helper()
	seen := map[string]bool{}
	plans := w.during(t, func() { a.all(t) })
	a.i++
	positions := a.plain.count(`SELECT count(*) FROM ` + a.table("relay"))
	for _, p := range plans {
		if of := p.holds(t, a.when, a.kept, a.n, positions); of != nil {
			seen[of.what] = true
		}
	}
	for _, p := range pins {
		if !seen[p.what] && a.n > 0 {
			t.Errorf("%s: %s: it was not asked", a.when, p.what)
		}
	}
}
