package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postbus/postbus/migrations"
)

// Stats is how the log and all who read it stand at one moment, by what the
// database knows. What a relay has in memory (its window, lanes, calls under way) is
// not in it: of that only its own process can tell.
type Stats struct {
	At     time.Time // by the database's clock, as all other times
	Log    LogStats
	Relays []RelayStats // relays and durable handlers, by name
}

// LogStats describes the log.
type LogStats struct {
	LastID        int64     // the last id handed out; ids of rollbacks count
	Floor         int64     // retention may have removed rows up to this id
	RetentionAt   time.Time // when retention last looked; zero: never
	OldestID      int64     // the lowest id above Floor; 0: there is none
	OldestAt      time.Time // when that was appended
	EstimatedRows int64     // by the server's statistics, as old as its last vacuum or analyze; -1: never done
	Bytes         int64     // table, indexes and TOAST, dead rows included
}

// RelayStats describes one relay or durable handler.
type RelayStats struct {
	Name    string
	Kind    string    // "relay" or "handler"; "" if nobody has run under the name, and somebody asks something of it
	Created time.Time // first Run; zero if not known

	Paused      bool
	PausedSince time.Time // when the request was carried out; zero: not paused, or its row was deleted
	Rate        float64   // events a second at most; 0: as fast as it can
	Types       []string  // patterns of event types that it lets through; nil: all
	SkipBelow   int64     // events with lower ids are left out; 0: none
	Lost        time.Time // when retention ended the position; zero: it stands

	Lease    LeaseStats
	Position PositionStats

	// Backlog counts the ids handed out above Position.ID: an upper bound of the
	// events there, since ids of rollbacks, of transactions still open and of types
	// that are not let through count too. Events with lower ids that were committed
	// after the round began are not in it: LateTransactions tells of them.
	Backlog int64
	// LateTransactions is how many transactions have committed events with ids below
	// Position.ID that are not published: those were open when a round began.
	LateTransactions int

	// OldestUnpublished is when the oldest event was appended that is committed and
	// that the position has not passed; OldestUnpublishedID is its log id. Zero: there
	// is none. Parked events have been passed. What the relay has sent and not yet
	// noted counts, for some 50 ms, and so does what its types do not let through,
	// until its rounds have come by.
	OldestUnpublished   time.Time
	OldestUnpublishedID int64
	// OldestUnpublishedAge is Stats.At less OldestUnpublished. It counts from the
	// append: the events of a transaction that was open for ten minutes are ten
	// minutes old when they appear.
	OldestUnpublishedAge time.Duration

	// IDsPerSecond is how fast the position moves: the ids that it has passed in the
	// last minute, or in the time that its last 100 links span if that is less. Gaps
	// count. It falls to 0 within a minute when nothing moves.
	IDsPerSecond float64
	moved        bool // at all, in that time; late events move it without passing ids

	Parked   ParkedStats
	Requests RequestStats
}

// LeaseStats says who should move a position.
type LeaseStats struct {
	Holder uuid.UUID // who holds it or held it last, as in the relay's log lines; zero: nobody ever
	Until  time.Time // when it runs out unless it is renewed; zero: it was given up
	Held   bool      // by Holder, at Stats.At
}

// PositionStats is how far somebody is: the latest link of the chain.
type PositionStats struct {
	Link      int64     // its number; 0: there is none, nobody has run yet
	LinkAt    time.Time // when it was written. A relay that has nothing to do writes none
	LinksKept int64     // of the chain, counted up to 10,000; a relay prunes its own, to some 2,200
	Round     int64     // number of the link that began the round
	RoundAt   time.Time // when that was
	InRound   bool      // false: the round is finished
	LastID    int64     // of the round, all up to it is settled; among late events below the round before
	UpperID   int64     // no event of the round lies above
	// ID is where it stands in the log: all with ids up to it that was committed when
	// the round began is settled, apart from late events of an unfinished round.
	ID int64
}

// ParkedStats counts what was put aside.
type ParkedStats struct {
	Retrying, Waiting, GivenUp, Discarded ParkedCount
	// KeysBlocked is how many keys (topic and partition key) have an event that is
	// retrying, waiting or given up. The policy is not stored: under SkipKey the keys
	// of those given up go on, and count here all the same.
	KeysBlocked int64
	// AtLeast: there are more than the 100,000 with the lowest log ids, and only
	// those are counted.
	AtLeast bool
}

// Rows counts all that are not discarded: what the relay keeps account of in memory.
func (p *ParkedStats) Rows() int64 { return p.Retrying.Rows + p.Waiting.Rows + p.GivenUp.Rows }

// ParkedCount counts the parked events of one state.
type ParkedCount struct {
	Rows   int64
	Bytes  int64     // of their payloads
	Oldest time.Time // when the first of them was put aside; zero: there is none
}

// RequestStats counts what was asked for and is not carried out yet.
type RequestStats struct {
	Open   int64
	Oldest time.Time // when the first was asked for; zero: there is none
}

// parkedCounted bounds what one look counts per relay.
const parkedCounted = 100_000

// ReadStats reads how the log of a schema and all who read it stand; schema may be
// empty for migrations.DefaultSchema. It can be called from any process, and needs
// no lease. The role that migrations.Grants calls Admin or Relay may do it; USAGE of the
// schema and SELECT on the tables and the sequence are enough. It is one read-only transaction of six statements, sent in one go, however
// many relays there are; none of them scans the log, so that calling it every few
// seconds is cheap (docs/operations.md has figures). It takes ten seconds at most,
// less if ctx ends earlier. Errors wrap ErrInvalidConfig, ErrMissingPrivilege,
// migrations.ErrNotMigrated, or are the database's.
func ReadStats(ctx context.Context, pool *pgxpool.Pool, schema string) (Stats, error) {
	if schema == "" {
		schema = migrations.DefaultSchema
	}
	var faults []error
	if pool == nil {
		faults = append(faults, errors.New("the pool is nil: pass an open *pgxpool.Pool"))
	}
	if err := migrations.CheckSchema(schema); err != nil {
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return Stats{}, fmt.Errorf("outbox.ReadStats: %w: %w", ErrInvalidConfig, errors.Join(faults...))
	}
	return (&database{pool: pool, schema: schema, timeout: 10 * time.Second}).stats(ctx, parkedCounted, true)
}

// stats counts the first parked rows of each relay, up to counted; the discarded
// ones only if asked.
func (d *database) stats(ctx context.Context, counted int, discarded bool) (Stats, error) {
	s := statsReader{db: d, counted: counted, discarded: discarded, byName: map[string]*RelayStats{}}
	if err := s.read(ctx); err != nil {
		if err = explain(d.schema, err); errors.Is(err, ErrMissingPrivilege) {
			// All that is missing at once, as statements to run, instead of the first.
			err = cmp.Or(d.missingGrants(ctx, "outbox.ReadStats", grantsOfStats), err)
		}
		return Stats{}, fmt.Errorf("read how the log of schema %q stands: %w", d.schema, err)
	}
	for _, r := range s.byName {
		r.derive(&s.stats)
		s.stats.Relays = append(s.stats.Relays, *r)
	}
	slices.SortFunc(s.stats.Relays, func(a, b RelayStats) int { return cmp.Compare(a.Name, b.Name) })
	return s.stats, nil
}

// derive fills in what follows from what was read.
func (r *RelayStats) derive(s *Stats) {
	p := &r.Position
	if r.Lease.Held = r.Lease.Until.After(s.At); p.Link == 0 {
		r.Backlog = max(0, s.Log.LastID-s.Log.Floor) // it has not begun
		return
	}
	r.Backlog = max(0, s.Log.LastID-max(p.ID, r.SkipBelow-1))
	if !r.OldestUnpublished.IsZero() {
		r.OldestUnpublishedAge = max(0, s.At.Sub(r.OldestUnpublished))
	}
}
