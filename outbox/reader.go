package outbox

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/typepattern"
)

const (
	// chunkRows and chunkBytes bound what one query brings into memory. What a
	// first query brings too much is dropped, and the next asks for less.
	chunkRows  = 4000
	chunkBytes = 4 << 20
	firstRows  = 250
)

// reader reads a round's rows in order and ahead of the publisher.
type reader struct {
	db     *database
	slots  slotRange
	rows   *rowReader
	shared *sharedRead // nil: nobody to share with
	width  int64       // ids of the next window
	found  int         // rows of the last one: about as many will come again

	skipBelow   int64    // ids below are left out
	like, like2 []string // nil, or what event types are like

	// Windows are windows of ids, never LIMIT: over a condition on xid the planner
	// would take LIMIT for a reason to walk another index and re-read the backlog
	// for every chunk. A window of ids has one sensible plan.
	restSQL string
	nextSQL string
	lateSQL string
	someSQL string
}

func newReader(db *database, slots slotRange, source string) *reader {
	log := db.table("outbox")
	return &reader{
		db: db, slots: slots, rows: newRowReader(source), width: firstRows,
		restSQL: `SELECT ` + rowColumns + ` FROM ` + log + ` WHERE id > $1 AND id <= $2 AND slot BETWEEN $3 AND $4
			AND ($5::text[] IS NULL OR event_type LIKE ANY ($5::text[])) AND ($6::text[] IS NULL OR event_type LIKE ANY ($6::text[])) ORDER BY id`,
		nextSQL: `SELECT id FROM ` + log + ` WHERE id > $1 AND id <= $2 ORDER BY id LIMIT 1`,
		// The bounds on id are kept from the primary key, along which the planner
		// would otherwise walk the whole log for a few late rows.
		lateSQL: `SELECT id FROM ` + log + ` WHERE xid = ANY ($1::text[]::xid8[]) AND id + 0 > $2 AND id + 0 <= $3`,
		someSQL: `SELECT ` + rowColumns + ` FROM ` + log + ` WHERE id = ANY ($1::bigint[]) AND slot BETWEEN $2 AND $3
			AND ($4::text[] IS NULL OR event_type LIKE ANY ($4::text[])) AND ($5::text[] IS NULL OR event_type LIKE ANY ($5::text[]))`,
	}
}

// narrow leaves out ids, and event types that do not match both sets of patterns
// (none: all).
func (rd *reader) narrow(skipBelow int64, patterns, more []string) {
	rd.skipBelow, rd.like, rd.like2 = skipBelow, nil, nil
	if len(patterns) > 0 {
		rd.like = typepattern.Like(patterns)
	}
	if len(more) > 0 {
		rd.like2 = typepattern.Like(more)
	}
}

// widest is the widest window of ids: wider where few of its rows are wanted.
func (rd *reader) widest() int64 {
	if rd.like != nil || rd.like2 != nil {
		return 16 * chunkRows
	}
	return chunkRows
}

// read sends the rows of r above lastID to out, in order. It returns when all are
// sent or ctx is done.
func (rd *reader) read(ctx context.Context, r *round, lastID int64, out chan<- *chunk) error {
	if err := rd.readLate(ctx, r, lastID, out); err != nil {
		return err
	}
	return rd.readRest(ctx, r, max(lastID, r.prevID, rd.skipBelow-1), out)
}

// readLate reads the ids first and the rows by id, so that a transaction of any
// size costs 8 bytes a row at once.
func (rd *reader) readLate(ctx context.Context, r *round, lastID int64, out chan<- *chunk) error {
	xids := r.late()
	if len(xids) == 0 || lastID >= r.prevID {
		return nil
	}
	ids, err := rd.lateIDs(ctx, xids, max(lastID, rd.skipBelow-1), r.prevID)
	if err != nil {
		return fmt.Errorf("read the late events of round %d: %w", r.n, err)
	}
	slices.Sort(ids)
	for len(ids) > 0 {
		n := min(len(ids), int(min(rd.width, 1000)))
		c, last, err := rd.fetch(ctx, nil, rd.someSQL, ids[:n], rd.slots.from, rd.slots.to, rd.like, rd.like2)
		if err != nil {
			return fmt.Errorf("read the late events of round %d: %w", r.n, err)
		}
		// Rows come in any order, so a chunk that was cut short counts for nothing.
		if last >= 0 && n > 1 {
			continue
		}
		ids = ids[n:]
		slices.SortFunc(c.items, func(a, b *item) int { return cmp.Compare(a.LogID, b.LogID) })
		if err := send(ctx, out, c); err != nil {
			return err
		}
	}
	return nil
}

func (rd *reader) lateIDs(ctx context.Context, xids []uint64, above, upTo int64) ([]int64, error) {
	var ids []int64
	err := rd.db.read(ctx, rd.lateSQL, []any{texts(xids), above, upTo}, func(rows pgx.Rows) (bool, error) {
		id, err := integer(rows.RawValues()[0], rows.FieldDescriptions()[0])
		ids = append(ids, id)
		return true, err
	})
	return ids, err
}

func (rd *reader) readRest(ctx context.Context, r *round, lo int64, out chan<- *chunk) error {
	for lo < r.upper {
		if rd.shares(r, lo) {
			c, hi, err := rd.readShared(ctx, r, lo)
			if err != nil {
				return fmt.Errorf("read events from %d of round %d: %w", lo+1, r.n, err)
			}
			if hi > lo {
				lo = hi
				if len(c.items) > 0 {
					if err := send(ctx, out, c); err != nil {
						return err
					}
				} else if lo, err = rd.jump(ctx, lo, r.upper); err != nil {
					return fmt.Errorf("read events %d to %d of round %d: %w", lo+1, r.upper, r.n, err)
				}
				continue
			}
		}
		hi := min(lo+rd.width, r.upper)
		c, last, err := rd.fetch(ctx, r, rd.restSQL, lo, hi, rd.slots.from, rd.slots.to, rd.like, rd.like2)
		if err != nil {
			return fmt.Errorf("read events %d to %d of round %d: %w", lo+1, hi, r.n, err)
		}
		if last >= 0 {
			hi = last
		}
		lo = hi
		if len(c.items) > 0 {
			if err := send(ctx, out, c); err != nil {
				return err
			}
		} else if lo < r.upper {
			if lo, err = rd.jump(ctx, lo, r.upper); err != nil {
				return fmt.Errorf("read events %d to %d of round %d: %w", lo+1, r.upper, r.n, err)
			}
		}
	}
	return nil
}

// shares: there is more than a block to read, all of it wanted, and others in this
// process may want it too.
func (rd *reader) shares(r *round, lo int64) bool {
	return rd.shared != nil && r.upper-lo >= rd.shared.size && rd.like == nil && rd.like2 == nil && rd.slots == allSlots && !rd.shared.alone()
}

// jump goes over a gap: to just below the next row above lo.
func (rd *reader) jump(ctx context.Context, lo, upper int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, rd.db.timeout)
	defer cancel()
	var next int64
	switch err := rd.db.pool.QueryRow(ctx, rd.nextSQL, lo, upper).Scan(&next); err {
	case nil:
		return next - 1, nil
	case pgx.ErrNoRows:
		return upper, nil
	default:
		return lo, err
	}
}

// fetch runs one query and keeps the rows that belong to r (nil: all). When they
// were too many bytes at once, it gives the last id it has read, else -1.
func (rd *reader) fetch(ctx context.Context, r *round, sql string, args ...any) (*chunk, int64, error) {
	slab := make([]item, 0, min(int(rd.width), rd.found+rd.found/4+16))
	bytes, cut := 0, int64(-1)
	err := rd.db.read(ctx, sql, args, func(rows pgx.Rows) (bool, error) {
		slab = append(slab, item{})
		it := &slab[len(slab)-1]
		xid, err := rd.rows.read(rows, it)
		if err != nil {
			return false, err
		}
		if bytes += it.bytes; bytes >= chunkBytes {
			cut = it.LogID
		}
		if r != nil && !r.has(xid) {
			slab = slab[:len(slab)-1]
		}
		return cut < 0, nil
	})
	if err != nil {
		return nil, -1, err
	}
	rd.found = len(slab)
	switch {
	case cut >= 0:
		rd.width = max(1, rd.width/2)
	case bytes < chunkBytes/4:
		if most := rd.widest(); rd.width < most {
			rd.width, rd.found = min(2*rd.width, most), 2*rd.found
		}
	}
	return newChunk(slab), cut, nil
}

func send(ctx context.Context, out chan<- *chunk, c *chunk) error {
	select {
	case out <- c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// texts is how xid8 values travel: as text they are the same in every exec mode.
func texts(xids []uint64) []string {
	s := make([]string, len(xids))
	for i, x := range xids {
		s[i] = strconv.FormatUint(x, 10)
	}
	return s
}
