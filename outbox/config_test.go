package outbox

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

func TestAllFaultsOfAConfigAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	var nobody *sink
	_, err := NewRelay(nil, nobody, RelayConfig{
		Name: "Not A Name", Schema: "no schema", StartAt: -2, Policy: 9, Lanes: -1, Batch: -1, BatchBytes: -1, Window: -1, WindowBytes: -1,
		Lease: time.Millisecond, PublishTimeout: time.Hour, DrainTimeout: -1, PollInterval: 1, DatabaseTimeout: 1,
		Retry: RetryConfig{Initial: -1, Max: -1, Multiplier: 0.5, MaxAttempts: -1},
	})
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatalf("got %v", err)
	}
	for _, fault := range []string{"the pool is nil", "the publisher is nil", "RelayConfig.Name", "RelayConfig.Schema", "RelayConfig.StartAt", "RelayConfig.Policy",
		"RelayConfig.Lanes", "RelayConfig.Batch ", "RelayConfig.BatchBytes", "RelayConfig.Window ", "RelayConfig.WindowBytes", "RelayConfig.Lease",
		"RelayConfig.PublishTimeout", "RelayConfig.DrainTimeout", "RelayConfig.PollInterval", "RelayConfig.DatabaseTimeout",
		"RelayConfig.Retry.Initial", "RelayConfig.Retry.Multiplier", "RelayConfig.Retry.MaxAttempts"} {
		if !strings.Contains(err.Error(), fault) {
			t.Errorf("%q is not reported", fault)
		}
	}
}

func TestZeroConfigHasDefaults(t *testing.T) {
	t.Parallel()
	for _, batches := range []bool{true, false} {
		c, faults := RelayConfig{Name: "kafka"}.withDefaults(batches)
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		lanes := 64
		if batches {
			lanes = 8
		}
		if c.Lanes != lanes || c.Batch != 1000 || c.Window != 10_000 || c.Lease != 10*time.Second || c.PublishTimeout != 5*time.Second ||
			c.Retry.MaxAttempts != 20 || c.Retry.Multiplier != 2 || c.Policy != BlockKey || c.StartAt != FromBeginning || c.Logger == nil {
			t.Errorf("batches %v: got %+v", batches, c)
		}
	}
}

func TestNilPublisherIsRefused(t *testing.T) {
	t.Parallel()
	pool := new(pgxpool.Pool) // never used
	if _, err := NewRelay(pool, nil, RelayConfig{Name: "a"}); err == nil || !strings.Contains(err.Error(), "the publisher is nil") {
		t.Errorf("nil: %v", err)
	}
	if _, err := NewRelay(pool, (*sink)(nil), RelayConfig{Name: "a"}); err == nil || !strings.Contains(err.Error(), "the publisher is nil") {
		t.Errorf("a nil pointer: %v", err)
	}
	if _, err := NewRelay(pool, newSink(), RelayConfig{Name: "a"}); err != nil {
		t.Errorf("a good one: %v", err)
	}
}
