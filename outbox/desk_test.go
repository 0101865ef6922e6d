package outbox

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

func TestDeskRefusesWhatNamesNoRelay(t *testing.T) {
	t.Parallel()
	_, err := NewDesk(nil, "No Name", DeskConfig{Schema: "no schema", By: "two\nlines"})
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatalf("got %v", err)
	}
	for _, fault := range []string{"the pool is nil", "DeskConfig.Schema", `the name is "No Name"`, "DeskConfig.By has a control character"} {
		if !strings.Contains(err.Error(), fault) {
			t.Errorf("%q is not reported in %v", fault, err)
		}
	}
	for by, fault := range map[string]string{strings.Repeat("x", 201): "201 bytes", "a\xff": "UTF-8", "nul\x00": "control"} {
		if _, err := NewDesk(new(pgxpool.Pool), "kafka", DeskConfig{By: by}); !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), fault) {
			t.Errorf("by %.10q: %v", by, err)
		}
	}
	if _, err := NewDesk(new(pgxpool.Pool), "stock.ledger", DeskConfig{}); err != nil {
		t.Errorf("a good one: %v", err)
	}
}
