package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postbus/postbus/internal/typepattern"
)

const (
	// chunkRows and chunkBytes bound what goes on in one piece.
	chunkRows  = 1000
	chunkBytes = 512 << 10
	// queryRows and queryBytes bound what one query reads, so that it is over soon and
	// its snapshot with it.
	queryRows  = 64_000
	queryBytes = 32 << 20
	// firstRows is where a reader begins, and what it comes back to when nobody takes
	// what it reads.
	firstRows = 250
	// lateBytes bounds what is read of late rows at once.
	lateBytes = 4 << 20
	// worthReading is how many bytes of rows that are not wanted are received all the
	// same, because a new connection costs more.
	worthReading = 4 << 20
	// patience is how long a query waits for somebody to take what it has read.
	patience = 50 * time.Millisecond
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
	n := firstRows
	for len(ids) > 0 {
		n = min(n, len(ids))
		c, whole, err := rd.fetchLate(ctx, ids[:n])
		switch {
		case err != nil:
			return fmt.Errorf("read the late events of round %d: %w", r.n, err)
		case !whole: // a chunk that was cut short counts for nothing, since rows come in any order
			n = max(1, n/4)
			continue
		}
		ids = ids[n:]
		slices.SortFunc(c.items, func(a, b *item) int { return cmp.Compare(a.LogID, b.LogID) })
		if err := send(ctx, out, c); err != nil {
			return err
		}
		n = min(2*n, chunkRows)
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
		reached, found, err := rd.stream(ctx, r, lo, hi, out)
		if err != nil {
			return fmt.Errorf("read events %d to %d of round %d: %w", lo+1, hi, r.n, err)
		}
		if lo = reached; found == 0 && lo < r.upper {
			if lo, err = rd.jump(ctx, lo, r.upper); err != nil {
				return fmt.Errorf("read events %d to %d of round %d: %w", lo+1, r.upper, r.n, err)
			}
		}
	}
	return nil
}

// stream reads the ids above lo up to hi by one query, and sends the round's rows
// among them on while it goes. It says how far it got: not up to hi if nobody took what
// it read, or if that was too much.
func (rd *reader) stream(ctx context.Context, r *round, lo, hi int64, out chan<- *chunk) (reached int64, found int, err error) {
	var slab []item
	var pending *chunk // that nobody has taken yet
	bytes, total, seen := 0, 0, int64(0)
	reached = hi
	late := time.Now().Add(rd.db.timeout / 4)
	err = rd.db.read(ctx, rd.restSQL, []any{lo, hi, rd.slots.from, rd.slots.to, rd.like, rd.like2}, func(rows pgx.Rows) (bool, error) {
		if slab == nil {
			slab = make([]item, 0, min(chunkRows, max(16, rd.found+rd.found/4)))
		}
		slab = append(slab, item{})
		it := &slab[len(slab)-1]
		xid, err := rd.rows.read(rows, it)
		if err != nil {
			return false, err
		}
		id := it.LogID
		seen++
		total += it.bytes
		if r.has(xid) {
			found++
			bytes += it.bytes
		} else {
			slab = slab[:len(slab)-1]
		}
		full := len(slab) == chunkRows || bytes >= chunkBytes
		if full {
			c := newChunk(slab)
			slab, bytes = nil, 0
			switch {
			case !offer(ctx, out, c):
				pending, reached = c, id
			case time.Now().After(late):
				reached = id
			}
		}
		if total >= queryBytes {
			reached = id
		}
		if reached == hi {
			return true, nil
		}
		if left := (hi - id) * int64(total) / seen; left > worthReading {
			return false, errAbandon
		}
		return false, nil
	})
	if err != nil {
		return lo, 0, err
	}
	rd.found = min(found, chunkRows)
	if pending == nil && len(slab) > 0 {
		pending = newChunk(slab)
	}
	switch {
	case reached < hi && total < queryBytes: // nobody takes it
		rd.width = max(firstRows, rd.width/4)
	case reached < hi || total >= queryBytes/4:
		rd.width = max(1, rd.width/2)
	case rd.width < queryRows:
		rd.width = min(2*rd.width, queryRows)
	}
	if pending != nil {
		return reached, found, send(ctx, out, pending)
	}
	return reached, found, nil
}

// offer sends c, unless nobody takes it soon.
func offer(ctx context.Context, out chan<- *chunk, c *chunk) bool {
	select {
	case out <- c:
		return true
	default:
	}
	soon := time.NewTimer(patience)
	defer soon.Stop()
	select {
	case out <- c:
		return true
	case <-ctx.Done():
	case <-soon.C:
	}
	return false
}

// shares: there is more than a block to read, all of it wanted, and others in this
// process may want it too.
func (rd *reader) shares(r *round, lo int64) bool {
	return rd.shared != nil && r.upper-lo >= rd.shared.size && rd.like == nil && rd.like2 == nil && rd.slots == allSlots && !rd.shared.alone()
}

// jump goes over a gap: to just below the next row above lo. It looks at a bounded
// number of ids at a time, since the gap may be full of dead entries: rows that
// retention has taken and no vacuum has cleared away yet, a tenth of a second per million.
func (rd *reader) jump(ctx context.Context, lo, upper int64) (int64, error) {
	const most = 16 << 20
	for step := int64(1 << 20); lo < upper; step = min(4*step, most) {
		hi := min(lo+step, upper)
		next, found, err := rd.nextID(ctx, lo, hi)
		if err != nil || found {
			return next - 1, err
		}
		lo = hi
	}
	return upper, nil
}

func (rd *reader) nextID(ctx context.Context, lo, hi int64) (next int64, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, rd.db.timeout)
	defer cancel()
	err = rd.db.pool.QueryRow(ctx, rd.nextSQL, lo, hi).Scan(&next)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return next, err == nil, err
}

// fetchLate reads rows by id, in any order. whole is false if they were too many bytes
// to be read at once.
func (rd *reader) fetchLate(ctx context.Context, ids []int64) (c *chunk, whole bool, err error) {
	slab := make([]item, 0, len(ids))
	bytes := 0
	err = rd.db.read(ctx, rd.someSQL, []any{ids, rd.slots.from, rd.slots.to, rd.like, rd.like2}, func(rows pgx.Rows) (bool, error) {
		slab = append(slab, item{})
		it := &slab[len(slab)-1]
		if _, err := rd.rows.read(rows, it); err != nil {
			return false, err
		}
		bytes += it.bytes
		if bytes >= lateBytes && len(ids) > 1 {
			return false, errAbandon
		}
		return true, nil
	})
	return newChunk(slab), bytes < lateBytes || len(ids) == 1, err
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
