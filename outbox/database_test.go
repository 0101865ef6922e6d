package outbox

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/testkit"
)

// A log that was never analyzed must not be read by compiled or parallel plans,
// and what keeps it from that must not outlive the read.
func TestLogIsReadByPlainPlans(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	var jit, workers string
	err := f.database().read(t.Context(), `SELECT current_setting('jit'), current_setting('max_parallel_workers_per_gather')`, nil,
		func(rows pgx.Rows) (bool, error) { return true, rows.Scan(&jit, &workers) })
	if err != nil || jit != "off" || workers != "0" {
		t.Errorf("jit %q, workers %q, %v", jit, workers, err)
	}
	for range 4 { // every connection of the pool
		if f.pool.QueryRow(t.Context(), `SELECT current_setting('jit')`).Scan(&jit) != nil || jit != "on" {
			t.Errorf("jit is %q after the read", jit)
		}
	}
}

// A position must not pass an event that could not be copied into the parked table.
func TestNothingIsPassedThatCouldNotBeParked(t *testing.T) {
	t.Parallel()
	f := setUp(t, testkit.PG15)
	f.add("k", 1, 3)
	s := f.stepped("test")
	if err := s.t.startRound(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	s.fill()
	items, _, _ := s.t.window.view()
	f.exec(`DELETE FROM `+f.table("outbox")+` WHERE id = $1`, items[1].LogID) // as nobody should
	want := stored(f, "test")
	if err := s.t.park(t.Context(), items, 3, items, nil); err == nil {
		t.Error("parked, although a row was missing")
	}
	if got := stored(f, "test"); got.n != want.n {
		t.Errorf("the position went from link %d to %d", want.n, got.n)
	}
	if n := f.count(`SELECT count(*) FROM ` + f.table("parked")); n != 0 {
		t.Errorf("%d of 3 events are parked", n)
	}
}
