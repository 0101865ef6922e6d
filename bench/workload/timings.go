package workload

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Timings notes how long each statement of a pool takes, by its text.
type Timings struct {
	mu   sync.Mutex
	took map[string][]time.Duration
}

// Trace makes a pool's config report to t.
func (t *Timings) Trace(c *pgxpool.Config) { c.ConnConfig.Tracer = t }

// Reset forgets what was noted.
func (t *Timings) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.took = map[string][]time.Duration{}
}

// Medians are those of the statements that were sent at least 50 times.
func (t *Timings) Medians() map[string]time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	medians := map[string]time.Duration{}
	for sql, ds := range t.took {
		if len(ds) >= 50 {
			medians[sql] = Middle(ds)
		}
	}
	return medians
}

// Middle is the median of ds, which it sorts.
func Middle(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

type timed struct {
	sql   string
	began time.Time
}

type timedKey struct{}

// TraceQueryStart implements pgx.QueryTracer.
func (t *Timings) TraceQueryStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, timedKey{}, timed{d.SQL, time.Now()})
}

// TraceQueryEnd implements pgx.QueryTracer.
func (t *Timings) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	t.end(ctx)
}

// TraceBatchStart implements pgx.BatchTracer: a batch is known by its first statement.
func (t *Timings) TraceBatchStart(ctx context.Context, _ *pgx.Conn, d pgx.TraceBatchStartData) context.Context {
	sql := ""
	for _, q := range d.Batch.QueuedQueries {
		sql += q.SQL + "; "
	}
	return context.WithValue(ctx, timedKey{}, timed{sql, time.Now()})
}

// TraceBatchQuery implements pgx.BatchTracer.
func (t *Timings) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd implements pgx.BatchTracer.
func (t *Timings) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) {
	t.end(ctx)
}

func (t *Timings) end(ctx context.Context) {
	began, ok := ctx.Value(timedKey{}).(timed)
	if !ok {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.took == nil {
		t.took = map[string][]time.Duration{}
	}
	t.took[began.sql] = append(t.took[began.sql], time.Since(began.began))
}
