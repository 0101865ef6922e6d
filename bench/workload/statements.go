package workload

import (
	"context"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Statements counts what a pool sends to the server.
type Statements struct {
	mu   sync.Mutex
	sent []string
}

// Trace makes a pool's config report to s.
func (s *Statements) Trace(c *pgxpool.Config) { c.ConnConfig.Tracer = s }

// Reset forgets what was counted.
func (s *Statements) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = nil
}

// Count is how many statements were sent since Reset; how many of them write to tables
// other than the lease's, and how many renew a lease.
func (s *Statements) Count() (all, writes, renewals int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sql := range s.sent {
		word, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(sql)), " ")
		switch {
		case strings.Contains(sql, "relay_lease"):
			renewals++
		case word == "INSERT" || word == "UPDATE" || word == "DELETE" || word == "COPY":
			writes++
		}
	}
	return len(s.sent), writes, renewals
}

func (s *Statements) add(sql string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, sql)
}

// TraceQueryStart implements pgx.QueryTracer.
func (s *Statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	s.add(d.SQL)
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (s *Statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TraceBatchStart implements pgx.BatchTracer.
func (s *Statements) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

// TraceBatchQuery implements pgx.BatchTracer.
func (s *Statements) TraceBatchQuery(_ context.Context, _ *pgx.Conn, d pgx.TraceBatchQueryData) {
	s.add(d.SQL)
}

// TraceBatchEnd implements pgx.BatchTracer.
func (s *Statements) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}
