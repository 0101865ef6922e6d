package harness

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// DescribeMachine says in a line what the figures were taken on.
func DescribeMachine(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, Postgres.URL())
	if err != nil {
		return "", fmt.Errorf("ask the server for its version: %w", err)
	}
	defer conn.Close(ctx)
	var server string
	err = conn.QueryRow(ctx, `SELECT format('PostgreSQL %s, shared_buffers %s, synchronous_commit %s, fsync %s',
		current_setting('server_version'), current_setting('shared_buffers'), current_setting('synchronous_commit'), current_setting('fsync'))`).Scan(&server)
	if err != nil {
		return "", fmt.Errorf("ask the server for its version: %w", err)
	}
	return fmt.Sprintf("%s, %d cores, %s, %s", cpu(), runtime.NumCPU(), runtime.Version(), server), nil
}

// cpu is the processor's name where the system tells it.
func cpu() string {
	content, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
