package outbox

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Relays of one process that are behind read the same rows at about the same time:
// they share what one of them has read. What is shared is a block of ids, as it was
// found by a query that began after the round of whoever uses it: such a query sees
// all that the round's snapshot sees.

// blockIDs is how many ids a block has. A round with fewer to read than that is at
// the log's end, and reads for itself.
const blockIDs = 2000

// blockBytes bounds the payloads of a block: it then ends before its last id.
const blockBytes = 4 << 20

// sharedBytes bounds the payloads of the blocks of one log that are kept: those
// that the relays behind have still to come to.
const sharedBytes = 16 << 20

// sharedReads are the blocks of the logs that this process reads, by source.
var sharedReads = struct {
	sync.Mutex
	logs map[string]*sharedRead
}{logs: map[string]*sharedRead{}}

// sharedRead is what is kept of one log.
type sharedRead struct {
	users int   // guarded by sharedReads
	size  int64 // of a block, in ids

	mu     sync.Mutex
	blocks map[int64]*block
	order  []*block // as they were begun
	bytes  int
}

// block holds the rows with ids above n times the size, up to upTo.
type block struct {
	n     int64
	began time.Time     // before its query was sent
	read  chan struct{} // closed when what follows is known
	rows  []sharedRow
	upTo  int64 // the block's last id, or less, if its rows were too many bytes
	bytes int
	err   error
}

type sharedRow struct {
	xid uint64
	Message
	slot  int16
	bytes int
}

// joinSharedRead gives what relays of this process share of a log, until leave.
func joinSharedRead(source string) (s *sharedRead, leave func()) {
	sharedReads.Lock()
	defer sharedReads.Unlock()
	s = sharedReads.logs[source]
	if s == nil {
		s = &sharedRead{size: blockIDs, blocks: map[int64]*block{}}
		sharedReads.logs[source] = s
	}
	s.users++
	return s, sync.OnceFunc(func() {
		sharedReads.Lock()
		defer sharedReads.Unlock()
		if s.users--; s.users == 0 {
			delete(sharedReads.logs, source)
		}
	})
}

// alone: nobody else would use what is read.
func (s *sharedRead) alone() bool {
	sharedReads.Lock()
	defer sharedReads.Unlock()
	return s.users < 2
}

// block gives the block that id is in, read after since: one that is there, or is
// being read, or a new one that the caller has to read.
func (s *sharedRead) block(id int64, since time.Time) (b *block, mine bool) {
	n := (id - 1) / s.size
	s.mu.Lock()
	defer s.mu.Unlock()
	if b = s.blocks[n]; b != nil && b.began.After(since) {
		return b, false
	}
	b = &block{n: n, began: time.Now(), read: make(chan struct{})}
	s.blocks[n] = b
	s.order = append(s.order, b)
	return b, true
}

// done makes a block known, and forgets the oldest ones beyond the bound.
func (s *sharedRead) done(b *block) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += b.bytes
	if b.err != nil && s.blocks[b.n] == b {
		delete(s.blocks, b.n) // the next one reads it anew
	}
	close(b.read)
	for len(s.order) > 1 && s.bytes > sharedBytes {
		old := s.order[0]
		select {
		case <-old.read:
		default:
			return
		}
		s.order, s.bytes = s.order[1:], s.bytes-old.bytes
		if s.blocks[old.n] == old {
			delete(s.blocks, old.n)
		}
	}
}

// readShared gives the round's rows of the block above lo, and up to where they go.
func (rd *reader) readShared(ctx context.Context, r *round, lo int64) (*chunk, int64, error) {
	b, mine := rd.shared.block(lo+1, r.known)
	if mine {
		b.err = rd.readBlock(ctx, r, b)
		rd.shared.done(b)
	}
	select {
	case <-b.read:
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	if b.err != nil {
		if mine {
			return nil, 0, b.err
		}
		return nil, lo, nil // the other one's trouble: read it ourselves
	}
	upTo := min(b.upTo, r.upper)
	slab := make([]item, 0, len(b.rows))
	for i := range b.rows {
		row := &b.rows[i]
		if row.LogID <= lo || row.LogID > upTo || !r.has(row.xid) {
			continue
		}
		slab = append(slab, item{})
		it := &slab[len(slab)-1]
		it.Message, it.slot, it.bytes = row.Message, row.slot, row.bytes
	}
	return newChunk(slab), upTo, nil
}

func (rd *reader) readBlock(ctx context.Context, r *round, b *block) error {
	first := b.n * rd.shared.size
	b.upTo = first + rd.shared.size
	b.rows = make([]sharedRow, 0, min(rd.shared.size, r.upper-first))
	var it item
	return rd.db.read(ctx, rd.restSQL, []any{first, b.upTo, rd.slots.from, rd.slots.to, []string(nil), []string(nil)}, func(rows pgx.Rows) (bool, error) {
		it = item{}
		xid, err := rd.rows.read(rows, &it)
		if err != nil {
			return false, err
		}
		b.rows = append(b.rows, sharedRow{xid: xid, Message: it.Message, slot: it.slot, bytes: it.bytes})
		if b.bytes += it.bytes; b.bytes >= blockBytes {
			b.upTo = it.LogID
		}
		return b.bytes < blockBytes, nil
	})
}
