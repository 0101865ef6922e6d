package outbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// strip is one of the tables beside the log. They have no order by age and no index
// for it, which each of their writers would pay for; so all of a table is looked
// through in the order of its pages, a strip at a time, within rounds hours. Where the
// last look ended is in memory only: another process begins anywhere.
type strip struct {
	table  string
	keep   time.Duration
	where  string // what may leave once it is older than $3 microseconds
	count  func(*RetentionReport) *int64
	next   int64 // page
	begun  bool
	pages  int64 // of one strip
	rounds time.Duration
}

const (
	firstPages = 64
	mostPages  = 1024 // of 8 kB
)

func (r *Retention) asides() []*strip {
	all := []strip{
		// While the log has the event a rewind may come to it, and must find it discarded.
		{table: "parked", keep: r.cfg.KeepDiscarded, count: func(p *RetentionReport) *int64 { return &p.Discarded },
			where: `t.state = 'discarded' AND t.changed_at < now() - $3::bigint * interval '1 microsecond'
				AND t.log_id <= (SELECT floor FROM ` + r.db.table("retention") + `) AND NOT EXISTS (SELECT FROM ` + r.db.table("outbox") + ` AS o WHERE o.id = t.log_id)`},
		{table: "relay_request", keep: r.cfg.KeepRequests, count: func(p *RetentionReport) *int64 { return &p.Requests },
			where: `t.done_at < now() - $3::bigint * interval '1 microsecond'`},
		{table: "inbox", keep: r.cfg.KeepInbox, count: func(p *RetentionReport) *int64 { return &p.Inbox },
			where: `t.at < now() - $3::bigint * interval '1 microsecond'`},
	}
	var kept []*strip
	for _, s := range all {
		if s.keep == Forever {
			continue
		}
		if r.strips[s.table] == nil {
			s.pages, s.rounds = firstPages, min(max(s.keep/30, time.Hour), 24*time.Hour)
			r.strips[s.table] = &s
		}
		kept = append(kept, r.strips[s.table])
	}
	return kept
}

// removeAside looks through as many pages of each table as one look's share is, or
// all of them for Once.
func (r *Retention) removeAside(ctx context.Context, l *lease, report *RetentionReport) error {
	for _, s := range r.asides() {
		size, err := r.pages(ctx, s.table)
		if err != nil {
			return err
		}
		share := size
		if l != nil {
			share = min(size, max(firstPages, int64(float64(size)*float64(r.cfg.Interval)/float64(s.rounds))+1))
			if !s.begun && size > 0 {
				s.next = rand.Int64N(size)
			}
			s.begun = true
		} else {
			s.next = 0
		}
		for share > 0 && ctx.Err() == nil {
			if s.next >= size {
				s.next = 0
			}
			n := min(s.pages, share, size-s.next)
			began := time.Now()
			removed, err := r.removeStrip(ctx, s, n)
			if err != nil {
				return fmt.Errorf("remove old rows of %s: %w", r.db.table(s.table), explain(r.db.schema, err))
			}
			*s.count(report) += removed
			s.next, share = s.next+n, share-n
			switch took := time.Since(began); {
			case took > 2*chunkTime:
				s.pages = max(1, s.pages/2)
			case took < chunkTime/2:
				s.pages = min(2*s.pages, mostPages)
			}
			if ok, err := r.rest(ctx, l, time.Since(began)); !ok || err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Retention) pages(ctx context.Context, table string) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.db.timeout)
	defer cancel()
	err = r.db.pool.QueryRow(ctx, `SELECT pg_relation_size(`+quoteLiteral(r.db.table(table))+`::regclass) / current_setting('block_size')::int`).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", r.db.table(table), explain(r.db.schema, err))
	}
	return n, nil
}

// removeStrip deletes from n pages.
func (r *Retention) removeStrip(ctx context.Context, s *strip, n int64) (removed int64, err error) {
	// No lock on the positions: nothing here depends on them.
	err = r.db.write(ctx, false,
		statement{sql: `SELECT set_config('statement_timeout', $1, true)`, args: []any{fmt.Sprint(chunkTimeout.Milliseconds())}, rows: 1},
		statement{sql: planForTheEnds, rows: 1},
		statement{sql: `WITH gone AS (DELETE FROM ` + r.db.table(s.table) + ` AS t
				WHERE t.ctid >= $1::text::tid AND t.ctid < $2::text::tid AND ` + s.where + ` RETURNING 1) SELECT count(*) FROM gone`,
			args: []any{fmt.Sprintf("(%d,0)", s.next), fmt.Sprintf("(%d,0)", s.next+n), s.keep.Microseconds()},
			scan: func(row pgx.Row) error { return row.Scan(&removed) }})
	return removed, err
}
