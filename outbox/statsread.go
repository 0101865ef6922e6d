package outbox

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// statsReader reads everything in one REPEATABLE READ transaction: positions and
// log as of one moment, or what was published in between would look overdue.
type statsReader struct {
	db        *database
	counted   int // parked rows of each relay
	discarded bool
	stats     Stats
	byName    map[string]*RelayStats
}

// readPlainly keeps the planner from anything but the index scans that the
// statements are written for. Each of them reads a bounded number of rows by an
// index; a scan of a whole table can only be a misjudgement, by statistics that are
// old or were never taken. What is aggregated is hashed rather than sorted, since
// texts compare slowly.
const readPlainly = `SELECT set_config('jit', 'off', true), set_config('max_parallel_workers_per_gather', '0', true),
	set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
	set_config('enable_sort', 'off', true), set_config('work_mem', '16MB', true), set_config('statement_timeout', $1, true)`

// grantsOfStats is what ReadStats and Check do.
var grantsOfStats = []grant{
	{"SCHEMA", "", "USAGE"},
	{"TABLE", "outbox", "SELECT"},
	{"SEQUENCE", "outbox_id", "SELECT"},
	{"TABLE", "relay", "SELECT"},
	{"TABLE", "relay_link", "SELECT"},
	{"TABLE", "relay_lease", "SELECT"},
	{"TABLE", "relay_request", "SELECT"},
	{"TABLE", "retention", "SELECT"},
	{"TABLE", "parked", "SELECT"},
}

type statsQuery struct {
	sql  string
	args []any
	each func(row pgx.CollectableRow) error
}

func (s *statsReader) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.db.timeout)
	defer cancel()
	var batch pgx.Batch
	batch.Queue(`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
	batch.Queue(readPlainly, fmt.Sprint(s.db.timeout.Milliseconds()))
	for _, q := range s.queries() {
		batch.Queue(q.sql, q.args...).Query(func(rows pgx.Rows) error {
			defer rows.Close()
			for rows.Next() {
				if err := q.each(rows); err != nil {
					return err
				}
			}
			return rows.Err()
		})
	}
	batch.Queue(`COMMIT`)
	return s.db.pool.SendBatch(ctx, &batch).Close()
}

func (s *statsReader) queries() []statsQuery {
	return []statsQuery{
		{sql: s.sql(logStats), each: s.log},
		{sql: s.sql(relayStats), each: s.relay},
		{sql: s.sql(positionStats), each: s.position},
		{sql: s.sql(unpublishedStats), each: s.unpublished},
		{sql: s.sql(parkedStats), args: []any{s.counted + 1, s.counted, s.discarded}, each: s.parked},
		{sql: s.sql(requestStats), each: s.requests},
	}
}

// sql puts the names of the tables into one of the statements of statssql.go.
func (s *statsReader) sql(template string) string {
	oldnew := []string{"{named}", named, "{positions}", positions}
	for _, name := range []string{"outbox", "relay", "relay_link", "relay_lease", "relay_request", "parked", "retention"} {
		oldnew = append(oldnew, "{"+name+"}", s.db.table(name))
	}
	oldnew = append(oldnew, "{'outbox'}", quoteLiteral(s.db.table("outbox")), "{'outbox_id'}", quoteLiteral(s.db.table("outbox_id")))
	r := strings.NewReplacer(oldnew...)
	return r.Replace(r.Replace(r.Replace(template))) // positions holds named, which holds tables
}

// of gives the stats of a name, new ones if it has not come up yet.
func (s *statsReader) of(name string) *RelayStats {
	r := s.byName[name]
	if r == nil {
		r = &RelayStats{Name: name}
		s.byName[name] = r
	}
	return r
}

func (s *statsReader) log(row pgx.CollectableRow) error {
	l := &s.stats.Log
	var last, oldest *int64
	var at, looked *time.Time
	if err := row.Scan(&s.stats.At, &last, &l.Floor, &looked, &oldest, &at, &l.EstimatedRows, &l.Bytes); err != nil {
		return err
	}
	if last == nil {
		return fmt.Errorf("%w: GRANT SELECT ON SEQUENCE %s TO the connection's role", ErrMissingPrivilege, s.db.table("outbox_id"))
	}
	l.LastID, l.RetentionAt, l.OldestID, l.OldestAt = *last, value(looked), value(oldest), value(at)
	return nil
}

func (s *statsReader) relay(row pgx.CollectableRow) error {
	var name string
	r := RelayStats{}
	var created, paused, lost, until *time.Time
	var rate *float64
	var holder *string
	if err := row.Scan(&name, &r.Kind, &created, &r.Paused, &paused, &rate, &r.Types, &r.SkipBelow, &lost, &holder, &until); err != nil {
		return err
	}
	r.Name, r.Created, r.PausedSince, r.Rate, r.Lost = name, value(created), value(paused), value(rate), value(lost)
	r.Lease.Until = value(until)
	if holder != nil {
		var err error
		if r.Lease.Holder, err = uuid.Parse(*holder); err != nil {
			return err
		}
	}
	s.byName[name] = &r
	return nil
}

func (s *statsReader) position(row pgx.CollectableRow) error {
	var name string
	var p PositionStats
	var seconds float64
	var ids int64
	var moved bool
	if err := row.Scan(&name, &p.Link, &p.LinkAt, &p.LinksKept, &p.Round, &p.RoundAt, &p.InRound, &p.LastID, &p.UpperID, &p.ID,
		&seconds, &ids, &moved); err != nil {
		return err
	}
	r := s.of(name)
	r.Position, r.moved = p, moved
	if seconds > 0 {
		r.IDsPerSecond = float64(ids) / seconds
	}
	return nil
}

func (s *statsReader) unpublished(row pgx.CollectableRow) error {
	var name string
	var at time.Time
	var id int64
	var late int
	if err := row.Scan(&name, &at, &id, &late); err != nil {
		return err
	}
	r := s.of(name)
	r.OldestUnpublished, r.OldestUnpublishedID, r.LateTransactions = at, id, late
	return nil
}

func (s *statsReader) parked(row pgx.CollectableRow) error {
	var name string
	var p ParkedStats
	into := []any{&name, &p.KeysBlocked, &p.AtLeast}
	oldest := [4]*time.Time{}
	counts := [4]*ParkedCount{&p.Retrying, &p.Waiting, &p.GivenUp, &p.Discarded}
	for i, c := range counts {
		into = append(into, &c.Rows, &c.Bytes, &oldest[i])
	}
	if err := row.Scan(into...); err != nil {
		return err
	}
	for i, c := range counts {
		c.Oldest = value(oldest[i])
	}
	s.of(name).Parked = p
	return nil
}

func (s *statsReader) requests(row pgx.CollectableRow) error {
	var name string
	var q RequestStats
	if err := row.Scan(&name, &q.Open, &q.Oldest); err != nil {
		return err
	}
	s.of(name).Requests = q
	return nil
}

// value gives the zero value for NULL.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
