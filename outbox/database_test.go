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
